"""Who may ask, with and without keys."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from lira_engine.errors import LiraError
from lira_serve.access import Access, check_host, is_loopback, read_keys

KEY = "k" * 32
PATHS = ("/", "/v1/models", "/metrics", "/health/live", "/health/ready")


def client(*keys: str, base: str = "http://127.0.0.1:8000") -> TestClient:
    routes = [Route(path, lambda request: PlainTextResponse("in")) for path in PATHS]
    return TestClient(Starlette(routes=routes, middleware=[Middleware(Access, keys=keys)]), base_url=base)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "LOCALHOST", "127.1.2.3"])
def test_loopback_names_may_ask(host: str) -> None:
    assert client().get("/v1/models", headers={"host": f"{host}:8000"}).text == "in"


@pytest.mark.parametrize(
    "host", ["example.org", "127.0.0.1.example.org", "192.168.0.2", "0.0.0.0", "", "a b"]
)
@pytest.mark.parametrize("path", ["/", "/v1/models", "/metrics"])
def test_a_foreign_host_header_is_refused(host: str, path: str) -> None:
    response = client().get(path, headers={"host": host})
    assert response.status_code == 403
    assert "Host header" in response.json()["error"]["message"]


def test_health_is_open_to_probes() -> None:
    for path in ("/health/live", "/health/ready"):
        assert (
            client(KEY).get(path).status_code
            == client().get(path, headers={"host": "pod"}).status_code
            == 200
        )


def test_a_page_of_another_origin_is_refused() -> None:
    asking = client()
    assert asking.get("/v1/models", headers={"origin": "http://127.0.0.1:8000"}).status_code == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9000", "http://localhost:8000"):
        assert asking.get("/v1/models", headers={"origin": origin}).status_code == 403


@pytest.mark.parametrize("given", ["", KEY, f"Basic {KEY}", "Bearer", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"])
def test_a_wrong_key_is_refused(given: str) -> None:
    for path in ("/v1/models", "/metrics"):
        response = client("q" * 32, KEY).get(path, headers={"authorization": given})
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["code"] == "invalid_api_key"


def test_a_key_opens_from_any_host() -> None:
    asking = client("q" * 32, KEY, base="http://board.example:8000")
    for scheme in ("Bearer", "bearer"):
        assert asking.get("/v1/models", headers={"authorization": f"{scheme} {KEY}"}).status_code == 200
    assert asking.get("/").status_code == 200  # the page asks for the key


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.2", "board.example"])
def test_other_hosts_need_keys(host: str) -> None:
    with pytest.raises(LiraError, match="--api-key-file"):
        check_host(host, ())
    check_host(host, (KEY,))


def test_loopback_needs_none() -> None:
    for host in ("127.0.0.1", "::1", "[::1]", "localhost"):
        assert is_loopback(host)
        check_host(host, ())


def test_keys_are_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n\n  {'q' * 16}\r\n")
    assert read_keys(file) == (KEY, "q" * 16)


@pytest.mark.parametrize("content", ["", "\n\n", "short\n", f"{KEY}\nshort"])
def test_easy_keys_are_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(LiraError, match="openssl rand"):
        read_keys(file)


def test_a_key_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(LiraError, match="no-such-file"):
        read_keys(tmp_path / "no-such-file")
