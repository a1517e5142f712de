"""HTTP as no client sends it, over real connections."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import httpx
import pytest
from invented import Desk, asking, chat, head, refused, until, worker

from lira_serve.settings import Settings

CHAT = "/v1/chat/completions"


BODY = json.dumps(chat()).encode()
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = f"{len(BODY):x}\r\n".encode() + BODY + b"\r\n0\r\n\r\n"
FINE = {
    "chunked": head(f"POST {CHAT} HTTP/1.1", "Transfer-Encoding: chunked", body=CHUNKED),
    "http-1.0": head(f"POST {CHAT} HTTP/1.0", LENGTH, body=BODY),
    "continue": head(f"POST {CHAT} HTTP/1.1", LENGTH, "Expect: 100-continue", body=BODY),
    "websocket": head(
        f"POST {CHAT} HTTP/1.1", LENGTH, "Upgrade: websocket", "Connection: Upgrade", body=BODY
    ),
    "h2c": head(f"POST {CHAT} HTTP/1.1", LENGTH, "Upgrade: h2c", "Connection: Upgrade", body=BODY),
    "encoded-path": head("POST /v1/%63hat/completions HTTP/1.1", LENGTH, body=BODY),
    "body-of-a-get": head("GET /v1/models HTTP/1.1", LENGTH, body=BODY),
}


@pytest.mark.parametrize("name", FINE)
def test_unusual_requests_are_answered(served: Any, name: str) -> None:
    status, body = served.raw(FINE[name])
    assert status == 200, body
    assert json.loads(body)["object"] in ("chat.completion", "list")


NO_HTTP = {
    "both-lengths": head(f"POST {CHAT} HTTP/1.1", LENGTH, "Content-Length: 5", body=BODY),
    "negative-length": head(f"POST {CHAT} HTTP/1.1", "Content-Length: -1", body=BODY),
    "hex-length": head(f"POST {CHAT} HTTP/1.1", "Content-Length: 0x10", body=BODY),
    "coding": head(f"POST {CHAT} HTTP/1.1", "Transfer-Encoding: gzip, chunked", body=BODY),
    "two-hosts": head("GET /v1/models HTTP/1.1", "Host: localhost"),
    "no-host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "space-in-name": head("GET /v1/models HTTP/1.1", "Bad Name: x"),
    "zero-byte": head("GET /v1/models HTTP/1.1", "X: a\0b"),
    "header-bomb": head("GET /v1/models HTTP/1.1", *[f"X-{n}: y" for n in range(20_000)]),
    "long-header": head("GET /v1/models HTTP/1.1", "X: " + "y" * 500_000),
    "long-path": head("GET /" + "y" * 500_000 + " HTTP/1.1"),
    "http-2": b"PRI * HTTP/2.0\r\nSM\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", NO_HTTP)
def test_what_is_no_request_is_refused(served: Any, name: str) -> None:
    answer = served.raw(NO_HTTP[name])
    assert answer is None or (answer[0] == 400 and json.loads(answer[1])["error"]["message"])


ODD = [
    ("GET", CHAT, 405),
    ("OPTIONS", CHAT, 405),
    ("TRACE", "/v1/models", 405),
    ("PUT", "/v1/models", 405),
    ("BREW", "/v1/segment", 405),
    ("GET", "/v1/", 404),
    ("GET", "/v1/models/", 404),
    ("GET", "/v1/models/other", 404),
    ("GET", "/v1/models/%00%ff", 404),
    ("GET", "//v1/models", 404),
    ("GET", "/V1/models", 404),
    ("POST", CHAT + "/", 404),
    ("GET", "http://127.0.0.1/v1/models", 404),
    ("OPTIONS", "*", 404),
    ("CONNECT", "/v1/models", 405),
]


@pytest.mark.parametrize(("method", "path", "status"), ODD)
def test_other_methods_and_paths_are_refused(served: Any, method: str, path: str, status: int) -> None:
    found, body = served.raw(head(f"{method} {path} HTTP/1.1", "Connection: close"), "GET")
    assert found == status
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_requests_in_a_row_are_answered_in_their_order(served: Any) -> None:
    one = head("GET /v1/models HTTP/1.1") + head("GET /nowhere HTTP/1.1")
    with served.connect() as connection:
        connection.sendall(one * 20 + head("GET /health/live HTTP/1.1", "Connection: close"))
        data = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    statuses = re.findall(rb"HTTP/1.1 (\d+) ", data)
    assert statuses == [b"200", b"404"] * 20 + [b"200"]


BROKEN = {
    "chunk-of-a-head": head("HEAD /v1/models HTTP/1.1", "Transfer-Encoding: chunked", body=b"zz\r\n"),
    "line-behind-a-head": head("HEAD /v1/models HTTP/1.1") + b"\0\r\n\r\n",
    "chunk": head(f"POST {CHAT} HTTP/1.1", "Transfer-Encoding: chunked", body=b'5\r\n{"a":\r\nzz\r\n'),
    "chunk-after-the-answer": head("POST /nowhere HTTP/1.1", "Transfer-Encoding: chunked"),
    "cut-short": head(f"POST {CHAT} HTTP/1.1", "Content-Length: 5000", body=BODY[:50]),
    "form": head(
        "POST /v1/segment HTTP/1.1",
        "Content-Type: multipart/form-data; boundary=b",
        "Content-Length: 20",
        body=b"--b\r\n",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_request_that_breaks_off_leaves_no_trace(
    nano_settings: Settings, serve: Any, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    desk = Desk()
    with serve.serving(nano_settings, lambda settings: worker(desk, settings)) as server:
        with server.connect() as connection:
            connection.sendall(BROKEN[name])
            if "after" in name:
                answer = b""
                while not answer.endswith(b"}"):
                    answer += connection.recv(1 << 16)
                assert answer.startswith(b"HTTP/1.1 404")
                connection.sendall(b"zz\r\n")
                assert connection.recv(1 << 16) == b""
        assert server.raw(head("GET /health/live HTTP/1.1", "Connection: close"))[0] == 200
    assert '"trace"' not in server.log.getvalue()
    assert [record for record in caplog.records if record.name == "asyncio" or record.exc_info] == []
    assert desk.began == []


FORMS = [
    ("multipart/form-data", b"--b--"),
    ("multipart/form-data; boundary=", b"--b--"),
    ("multipart/form-data; boundary=b", b""),
    ("multipart/form-data; boundary=b", b"--b\r\n\r\n\r\n--b--"),
    (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--b--\r\n',
    ),
    ("multipart/form-data; boundary=b", b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' * 40),
    (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\nx\r\n' * 4,
    ),
    ("multipart/form-data; boundary=b", b"--b\r\n" + b"X: y\r\n" * 100_000),
    ("multipart/form-data; boundary=" + "b" * 5000, b"--b--"),
    (
        "multipart/form-data; boundary=b; charset=idna",
        b'--b\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n\xff\r\n--b--',
    ),
]


@pytest.mark.parametrize(("kind", "body"), FORMS, ids=range(len(FORMS)))
def test_a_damaged_form_is_refused(client: httpx.Client, kind: str, body: bytes) -> None:
    refused(client.post("/v1/segment", content=body, headers={"content-type": kind}))


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_beyond_the_limit_is_refused(nano_settings: Settings, chunked: bool) -> None:
    with asking(Desk(), replace(nano_settings, most_body=100_000)) as client:
        for size, status in ((99_999, 400), (100_001, 413)):
            body = b"x" * size
            response = client.post(CHAT, content=iter([body]) if chunked else body)
            assert refused(response, status)["message"]


def test_a_body_that_says_that_it_is_too_large_is_not_waited_for(nano_settings: Settings, serve: Any) -> None:
    settings = replace(nano_settings, most_body=100_000)
    with serve.serving(settings, lambda settings: worker(Desk(), settings)) as server:
        connection = server.connect()
        connection.settimeout(10)
        connection.sendall(head(f"POST {CHAT} HTTP/1.1", "Content-Length: 100001"))
        assert b" 413 " in connection.recv(100)
        connection.close()


def test_bodies_are_bounded_all_together(nano_settings: Settings, serve: Any) -> None:
    """Eight clients that have sent nearly all leave no room; it is there again when they have gone."""
    settings = replace(nano_settings, most_body=100_000)
    with serve.serving(settings, lambda settings: worker(Desk(), settings)) as server:
        start = head(f"POST {CHAT} HTTP/1.1", "Content-Length: 99999", body=b"x" * 99_990)
        holding = [server.connect() for _ in range(8)]
        for connection in holding:
            connection.sendall(start)
        with server.client() as client:

            def status() -> int:
                return client.post(CHAT, content=b"y" * 50_000).status_code

            until(lambda: status() == 503)
            for connection in holding:
                connection.close()
            until(lambda: status() == 400)
