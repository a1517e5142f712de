"""Clients that are slow, stop reading, or go away: they hold no place, and at last no connection."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import struct
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import httpx
import pytest
from invented import Desk, chat, head, refused, until, worker

from lira_serve.settings import Settings
from lira_serve.sse import EventStream

CHAT = "/v1/chat/completions"


def request(**fields: Any) -> bytes:
    body = json.dumps(chat(**fields)).encode()
    return head(f"POST {CHAT} HTTP/1.1", f"Content-Length: {len(body)}", body=body)


@pytest.fixture
def settings(nano_settings: Settings) -> Settings:
    return replace(nano_settings, header_seconds=0.4, body_seconds=0.4, send_seconds=0.6, queue=2)


@pytest.fixture
def open_server(settings: Settings, serve: Any) -> Any:
    """Serves a desk, by default with a gate that lets through one token at a time."""

    @contextmanager
    def opened(desk: Desk, **changes: Any) -> Iterator[Any]:
        changed = replace(settings, **changes)
        with serve.serving(changed, lambda settings: worker(desk, settings)) as server:
            try:
                yield server
            finally:
                if desk.gate is not None:
                    desk.gate.release(10_000)

    return opened


def gated(steps: int = 5, **options: Any) -> Desk:
    return Desk(steps=steps, gate=threading.Semaphore(0), **options)


def reset(connection: socket.socket) -> None:
    """Vanish: with a reset, not a polite end."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def rest(connection: socket.socket) -> bytes:
    """What comes until the server ends the connection, in one way or another."""
    data = b""
    try:
        while piece := connection.recv(1 << 16):
            data += piece
    except ConnectionError:
        pass
    return data


def whole(connection: socket.socket) -> bytes:
    """One JSON response, of a connection that stays open."""
    data = b""
    while not data.endswith(b"}"):
        data += (piece := connection.recv(1 << 16))
        assert piece
    return data


def metric(server: Any, name: str) -> float:
    with server.client() as client:
        found = re.search(rf"^{name} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def chats(server: Any) -> list[dict[str, Any]]:
    """The log's lines of questions."""
    lines = [json.loads(line) for line in server.log.getvalue().splitlines()]
    return [line for line in lines if line["path"] == CHAT]


def trickle(connection: socket.socket, data: bytes) -> int:
    """Send a byte at a time until the server has enough of it; return how many went."""
    for sent in range(len(data)):
        try:
            connection.sendall(data[sent : sent + 1])
        except ConnectionError:
            return sent
        connection.settimeout(0.03)
        try:
            connection.recv(1, socket.MSG_PEEK)
            return sent
        except TimeoutError:
            pass
        except ConnectionError:
            return sent
        finally:
            connection.settimeout(30)
    return len(data)


def test_headers_that_do_not_come_end_the_connection(open_server: Any) -> None:
    desk = Desk()
    with open_server(desk) as server, server.connect() as slow, server.connect() as silent:
        line = head("GET /v1/models HTTP/1.1", "X: " + "y" * 2000)
        assert trickle(slow, line) < len(line)
        assert rest(slow) == rest(silent) == b""


def test_a_second_request_must_come_as_fast(open_server: Any) -> None:
    with open_server(Desk()) as server, server.connect() as slow:
        slow.sendall(head("GET /health/live HTTP/1.1"))
        assert slow.recv(1 << 16).startswith(b"HTTP/1.1 200")
        line = head("GET /health/live HTTP/1.1", "X: " + "y" * 2000)
        assert trickle(slow, line) < len(line)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_does_not_come_is_refused(open_server: Any, chunked: bool) -> None:
    desk = Desk()
    with open_server(desk) as server, server.connect() as slow:
        kind = "Transfer-Encoding: chunked" if chunked else "Content-Length: 5000"
        slow.sendall(head(f"POST {CHAT} HTTP/1.1", kind, body=b"1388\r\n" if chunked else b""))
        trickle(slow, b" " * 5000)
        answer = whole(slow)
        assert answer.startswith(b"HTTP/1.1 408") and b'"error"' in answer
        assert server.worker.waiting == server.worker.answering == 0
    assert desk.began == []


@pytest.mark.parametrize("stream", [False, True])
def test_who_vanishes_while_waiting_frees_the_place(open_server: Any, stream: bool) -> None:
    desk = gated()
    with open_server(desk) as server, server.connect() as first:
        first.sendall(request())
        until(lambda: server.worker.answering == 1)
        waiting = [server.connect() for _ in range(2)]
        for connection in waiting:
            connection.sendall(request(stream=stream))
        until(lambda: server.worker.waiting == 2)
        with server.client() as client:
            response = client.post(CHAT, json=chat())
            assert refused(response, 503)["code"] == "busy" and int(response.headers["retry-after"]) >= 1
        reset(waiting[0])
        until(lambda: server.worker.waiting == 1)
        waiting[1].shutdown(socket.SHUT_WR)  # an end of sending counts as leaving
        until(lambda: server.worker.waiting == 0)
        waiting[1].close()
        assert metric(server, "lira_abandoned_total") == 2
        desk.gate.release(5)
        assert b'"chat.completion"' in whole(first)
    assert desk.began == ["What is it?"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0, 2])
def test_who_vanishes_in_an_answer_ends_it_at_the_next_token(
    open_server: Any, stream: bool, after: int
) -> None:
    desk = gated()
    with open_server(desk) as server:
        leaving = server.connect()
        leaving.sendall(request(stream=stream))
        until(lambda: server.worker.answering == 1)
        for _ in range(after):
            desk.gate.release()
        if stream:
            data = b""
            while data.count(b'"step":') < after or b"data:" not in data:
                data += leaving.recv(1 << 16)
        else:
            until(lambda: desk.gate._value == 0)  # an answer that is not streamed is told at its end
        reset(leaving)
        until(lambda: metric(server, "lira_abandoned_total") == 1)
        desk.gate.release(1)
        until(lambda: server.worker.answering == 0)
        ((_, given),) = desk.ended
        assert given <= after + 1
        desk.gate.release(5)
        assert server.chat("next")["choices"][0]["message"]["content"] == "word " * 5
        until(lambda: len(chats(server)) == 2)
    assert [line.get("left", False) for line in chats(server)] == [True, False]
    assert '"trace"' not in server.log.getvalue()


@pytest.mark.parametrize("stream", [False, True])
def test_who_never_reads_is_given_up(open_server: Any, stream: bool) -> None:
    """The answer is larger than all buffers between. Others are answered meanwhile."""
    with open_server(Desk(steps=20, text="x" * 1_000_000)) as server, socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(30)
        deaf.connect(server.connect().getpeername())
        deaf.sendall(request(stream=stream))
        assert len(server.chat("another")["choices"][0]["message"]["content"]) == 20_000_000
        until(lambda: len(chats(server)) == 2)
        time.sleep(0.7)  # until after the next look at the connection
        data = rest(deaf)
        assert 0 < len(data) < 12_000_000 and b"[DONE]" not in data
    assert '"trace"' not in server.log.getvalue()


def test_who_reads_slowly_gets_all(open_server: Any) -> None:
    """Longer than `send_seconds` in all, but never without taking anything."""
    with open_server(Desk(steps=12, text="x" * 1_000_000)) as server, server.connect() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        slow.sendall(request())
        size = 0
        while size < 12_000_000:
            size += len(slow.recv(1 << 18))
            time.sleep(0.01)
    assert size >= 12_000_000


def test_a_closing_server_does_not_wait_for_who_never_reads(open_server: Any) -> None:
    """`serving` asserts that the server ends."""
    with open_server(Desk(steps=20, text="x" * 1_000_000)) as server:
        deaf = server.connect()
        deaf.sendall(request())
        until(lambda: '"path": "/v1/chat' in server.log.getvalue())
    deaf.close()


def test_connections_beyond_the_limit_are_told_so(open_server: Any) -> None:
    with open_server(Desk(), most_connections=3, header_seconds=20.0) as server:
        idle = [server.connect() for _ in range(3)]
        with server.client() as client:
            response = client.get("/v1/models")
            assert refused(response, 503)["code"] == "busy" and response.headers["retry-after"] == "1"
        idle[0].sendall(head("GET /v1/models HTTP/1.1"))  # who is in is served
        assert idle[0].recv(1 << 16).startswith(b"HTTP/1.1 200")
        reset(idle[1])
        until(lambda: httpx.get(f"{server.url}/v1/models").status_code == 200)
        crowd = [server.connect() for _ in range(100)]
        time.sleep(0.1)
        closed = 0
        for connection in crowd:
            connection.settimeout(0.02)
            try:
                closed += connection.recv(1) == b""
            except ConnectionError:
                closed += 1
            except TimeoutError:
                pass
        assert 30 <= closed <= 40  # 64 may wait to be told
        for connection in [*crowd, *idle]:
            connection.close()


def test_a_stream_that_nobody_takes_ends_what_makes_it() -> None:
    """The client has left before the first event: the generator never starts, and its end cannot tell."""

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"never"

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def fails(message: Any) -> None:
        raise OSError("gone")

    async def works(message: Any) -> None:
        pass

    for send in (fails, works):
        ended: list[bool] = []
        stream = EventStream(chunks(), lambda: ended.append(True), 1.0)  # noqa: B023
        asyncio.run(stream({}, receive, send))  # type: ignore[arg-type]
        assert ended == [True]
