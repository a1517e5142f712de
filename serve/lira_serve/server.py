"""uvicorn, with an end that lets running answers finish, and limits for clients that send or take nothing."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from lira_engine.errors import LiraError
from lira_serve.api_errors import ApiError, busy
from lira_serve.replies import error_response
from lira_serve.settings import Settings

_MOST_HEADER_BYTES = 64 << 10
_REFUSED_AT_ONCE = 64  # connections beyond the limit that are told so
_LEAST_TAKEN = 16 << 10  # bytes in half of `Settings.send_seconds`


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises LiraError if the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host.strip("[]"), port), family=family, backlog=512)
    except (OSError, OverflowError, TypeError) as error:  # TypeError: a name that IDNA does not have
        reason = getattr(error, "strerror", None) or str(error)
        if isinstance(error, OSError) and error.errno and error.errno in errno.errorcode:
            reason = os.strerror(error.errno)  # Python's own text has the address once more
        raise LiraError(
            f"cannot listen at {host}:{port} ({reason}): choose another --host or --port"
        ) from None
    # Connections inherit it. asyncio sets it only where a socket names its protocol, and without it what
    # follows a response's headers waits 40 ms for the client's acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(
    app: ASGIApp,
    listener: socket.socket,
    settings: Settings,
    stop: Callable[[], None],
    failed: Callable[[], bool],
) -> None:
    """Serve until SIGTERM or SIGINT, or until `failed`: then call `stop`, let running answers finish, return.

    Raises KeyboardInterrupt after SIGINT.
    """
    config = uvicorn.Config(
        app,
        http=_protocol(settings),
        loop="asyncio",  # on every machine, whether uvloop is installed or not
        ws="none",
        lifespan="on",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
        timeout_keep_alive=30,
    )
    server = _Server(config, stop, failed)
    server.run([listener])
    if server.interrupted:
        raise KeyboardInterrupt


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, stop: Callable[[], None], failed: Callable[[], bool]) -> None:
        super().__init__(config)
        self._failed = failed
        self.interrupted = False
        self._stop = stop

    async def on_tick(self, counter: int) -> bool:
        return self._failed() or await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not uvicorn's own, which raises the signal again at the end: the process is to end with 0.
        self._stop()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self.interrupted |= sig == signal.SIGINT


def _protocol(settings: Settings) -> type[H11Protocol]:
    """Return uvicorn's protocol with an end for connections that send nothing or take nothing.

    uvicorn waits for both without end, a closing server too.
    """

    class Protocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _watch: asyncio.TimerHandle | None = None
        _unsent = 0  # bytes when the connection was looked at last

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            surplus = len(self.connections) - settings.most_connections
            if surplus > _REFUSED_AT_ONCE:
                transport.abort()
                return
            if surplus > 0:
                self.app = _full
            self._expect_headers()
            self._expect_progress()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._expect_headers()
            else:
                self._stop_clock()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_clock()
            if self._watch is not None:
                self._watch.cancel()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            # uvicorn would send it in the middle of a response, and let the application answer after it.
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                told = error_response(ApiError(400, "the request is not HTTP/1.1 as RFC 9112 has it"))
                to_head = self.conn.our_state is h11.SEND_RESPONSE and self.scope["method"] == "HEAD"
                headers = [*told.raw_headers, (b"connection", b"close")]
                response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
                body = h11.Data(data=b"" if to_head else bytes(told.body))
                for event in (response, body, h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()
            if self.cycle is not None:
                self.cycle.disconnected = True
                self.cycle.message_event.set()

        def _expect_headers(self) -> None:
            if self._deadline is None:
                self._deadline = self.loop.call_later(settings.header_seconds, self.transport.close)

        def _stop_clock(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _expect_progress(self) -> None:
            """Give the connection up if little was taken since the last look, and nothing is written."""
            unsent = self.transport.get_write_buffer_size()
            written = (
                not self.flow.write_paused and self.cycle is not None and not self.cycle.response_complete
            )
            if written and not self.transport.is_closing():
                unsent = 0  # it may grow
            elif unsent and self._unsent and unsent > self._unsent - _LEAST_TAKEN:
                self.transport.abort()
                return
            self._unsent = unsent
            self._watch = self.loop.call_later(settings.send_seconds / 2, self._expect_progress)

    return Protocol


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    response = error_response(busy("the server has as many connections as it may: ask again later", 1))
    response.headers["connection"] = "close"
    await response(scope, receive, send)


def address(listener: socket.socket) -> str:
    """Return the address that a browser opens."""
    found: tuple[Any, ...] = listener.getsockname()
    host = f"[{found[0]}]" if ":" in found[0] else found[0]
    return f"http://{host}:{found[1]}"
