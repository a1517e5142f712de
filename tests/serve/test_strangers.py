"""Who is not let in: other pages, other names of this machine, wrong keys."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from invented import Desk, asking, chat, refused

from lira_serve.settings import Settings

KEY = "k" * 32
CHAT = "/v1/chat/completions"
BODY = json.dumps(chat()).encode()


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://[",
        "http://[::1",
        "http://127.0.0.1",
        "http://127.0.0.1:8000@evil.example",
        "http://evil.example:8000",
        "http://127.0.0.1:8000.evil.example",
        "http://user@127.0.0.1:8000",
        "http://127.0.0.1:8000/",
        "127.0.0.1:8000",
        "file://",
        "é",
    ],
)
def test_a_foreign_page_cannot_ask(nano_settings: Settings, origin: str) -> None:
    desk = Desk()
    with asking(desk, nano_settings) as client:
        for kind in ("text/plain", "application/json"):  # text/plain: browsers send it without asking first
            headers = {"origin": origin.encode(), "content-type": kind.encode()}
            refused(client.post(CHAT, content=BODY, headers=headers), 403)
        own = {"origin": "http://127.0.0.1:8000", "content-type": "text/plain"}
        assert client.post(CHAT, content=BODY, headers=own).status_code == 200
    assert desk.began == ["What is it?"]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "127.0.0.1@evil.example",
        "127.0.0.1:80@evil.example",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "127.1",
        "0.0.0.0",
        "[::]",
        "[::1",
        "[::ffff:8.8.8.8]",
        "localhost.",
        "",
        "[",
        "é",
        "http://127.0.0.1",
    ],
)
def test_a_name_that_points_here_is_no_loopback_name(nano_settings: Settings, host: str) -> None:
    with asking(Desk(), nano_settings) as client:
        for path in ("/", "/v1/models", "/page/page.js", "/nowhere"):
            assert client.get(path, headers={"host": host.encode()}).status_code == 403


@pytest.mark.parametrize("host", ["[::1", "[", "evil.example/path", "a b", "é", "", "@:x"])
@pytest.mark.parametrize("path", ["/nowhere", "/v1/nowhere", "/metrics/", "/page/nothing", "/page"])
def test_with_keys_no_host_disturbs(nano_settings: Settings, host: str, path: str) -> None:
    with asking(Desk(), replace(nano_settings, api_keys=(KEY,))) as client:
        headers = {"host": host.encode(), "authorization": f"Bearer {KEY}".encode()}
        response = client.get(path, headers=headers, follow_redirects=False)
        assert response.status_code == 404 and "location" not in response.headers


GIVEN = [
    "",
    "Bearer",
    "Bearer ",
    f"Bearer {KEY[1:]}",
    f"Bearer {KEY}é",
    "Bearer é",
    f"Basic {KEY}",
    KEY,
    "\xff" * 50,
]


@pytest.mark.parametrize("given", [*GIVEN, f"Bearer {KEY}, Bearer {KEY}", "Bearer " + "k" * 60_000])
def test_a_wrong_key_opens_nothing(nano_settings: Settings, given: str) -> None:
    desk = Desk()
    with asking(desk, replace(nano_settings, api_keys=("q" * 32, KEY))) as client:
        headers = {"authorization": given.encode("latin-1")}
        for path in (CHAT, "/v1/segment", "/v1/models", "/v1/models/invented", "/v1/nowhere", "/metrics"):
            assert refused(client.post(path, content=BODY, headers=headers), 401)["code"] == "invalid_api_key"
    assert desk.began == []


def test_many_wrong_keys_leave_no_more_metrics(nano_settings: Settings) -> None:
    with asking(Desk(), replace(nano_settings, api_keys=(KEY,))) as client:
        right = {"authorization": f"Bearer {KEY}"}
        for number in range(300):
            assert (
                client.get(f"/v1/{number}", headers={"authorization": f"Bearer {number:032}"}).status_code
                == 401
            )
        text = client.get("/metrics", headers=right).text
        assert 'lira_requests_total{path="other",status="401"} 300.0' in text
        assert len(text) < 20_000
