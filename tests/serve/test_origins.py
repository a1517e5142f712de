"""Pages of other sites that may ask: what a browser is told (Fetch standard, CORS)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from invented import Desk, asking, chat
from starlette.testclient import TestClient

from lira_engine.errors import LiraError
from lira_serve.access import check_origin
from lira_serve.settings import Settings

CHAT = "/v1/chat/completions"
SITE, OTHER = "https://chat.example.org", "https://evil.example.org"
KEY = "k" * 32
ALLOWED = "access-control-allow-origin"
HEADERS = "authorization, content-type, x-stainless-lang"


@pytest.fixture(params=[(), (KEY,)], ids=["no-key", "key"])
def client(request: pytest.FixtureRequest, nano_settings: Settings) -> Iterator[TestClient]:
    settings = replace(nano_settings, allowed_origins=(SITE,), api_keys=request.param)
    with asking(Desk(), settings) as client:
        yield client


def preflight(client: TestClient, origin: str) -> dict[str, str]:
    """The headers of the answer to a browser that asks whether it may ask: never with a key."""
    asked = {"access-control-request-method": "POST", "access-control-request-headers": HEADERS}
    return dict(client.options(CHAT, headers={"origin": origin, **asked}).headers)


def test_an_allowed_page_asks_and_reads_the_answer(client: TestClient) -> None:
    told = preflight(client, SITE)
    assert told[ALLOWED] == SITE and "POST" in told["access-control-allow-methods"]
    assert told["access-control-allow-headers"] == HEADERS
    for stream in (False, True):
        headers = {"origin": SITE, "authorization": f"Bearer {KEY}"}
        answer = client.post(CHAT, json=chat(stream=stream), headers=headers)
        assert answer.status_code == 200 and answer.headers[ALLOWED] == SITE
        assert "retry-after" in answer.headers["access-control-expose-headers"].lower()


def test_another_page_is_told_nothing(client: TestClient) -> None:
    assert ALLOWED not in preflight(client, OTHER)
    headers = {"origin": OTHER}  # it has no key, and sends nothing for which a browser would ask first
    answer = client.post(CHAT, json=chat(), headers=headers)
    assert answer.status_code in (401, 403) and ALLOWED not in answer.headers


def test_an_allowed_page_needs_the_key_too(client: TestClient, request: pytest.FixtureRequest) -> None:
    answer = client.post(CHAT, json=chat(), headers={"origin": SITE})
    assert answer.status_code == (401 if "no-key" not in request.node.name else 200)
    assert answer.headers[ALLOWED] == SITE  # so that the page can read what is wrong


def test_without_allowed_origins_nobody_is_told(nano_settings: Settings) -> None:
    with asking(Desk(), replace(nano_settings, api_keys=(KEY,))) as client:
        assert ALLOWED not in preflight(client, SITE)
        headers = {"origin": SITE, "authorization": f"Bearer {KEY}"}
        assert ALLOWED not in client.post(CHAT, json=chat(), headers=headers).headers


@pytest.mark.parametrize("origin", [SITE, "http://localhost:3000", "http://[::1]:8080", "http://a:443"])
def test_origins_as_browsers_send_them(origin: str) -> None:
    check_origin(origin)


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "", "chat.example.org", f"{SITE}/", f"{SITE}:443", "https://Chat.example.org", "ftp://a",
     "https://", "https://a@b", "http://a:x", "https://a?b"],
)  # fmt: skip
def test_what_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(LiraError, match="--allow-origin is"):
        check_origin(origin)
