"""Server-sent events (WHATWG HTML, section 9.2) to a client that may leave, or stop reading, at any time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

from starlette.types import Receive, Scope, Send

_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # proxies of nginx's kind would hold events back
}


def event(data: dict[str, Any] | str, name: str | None = None) -> bytes:
    """Return one event: `data` as one line of JSON, or as it is."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"), allow_nan=False)
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


def comment(text: str) -> bytes:
    """Return a line that clients skip. It keeps proxies from closing a quiet connection."""
    return f": {text}\n\n".encode()


class EventStream:
    """The response: chunks as they come, and comments while there are none.

    It ends with the last chunk, or when the client leaves or takes nothing for `send_seconds`. `on_end` is
    called in any case, also when no chunk was taken.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        on_end: Callable[[], None],
        send_seconds: float,
        quiet_seconds: float = 5.0,
    ) -> None:
        self._chunks = chunks
        self._on_end = on_end
        self._send_seconds = send_seconds
        self._quiet_seconds = quiet_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
        gone = asyncio.ensure_future(disconnected(receive))
        following: asyncio.Future[bytes | None] | None = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while True:
                following = following or asyncio.ensure_future(self._next())
                either: list[asyncio.Future[Any]] = [following, gone]
                await asyncio.wait(either, timeout=self._quiet_seconds, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                if following.done():
                    chunk, following = following.result(), None
                    if chunk is None:
                        break
                else:
                    chunk = comment("waiting")
                body = {"type": "http.response.body", "body": chunk, "more_body": True}
                await asyncio.wait_for(send(body), self._send_seconds)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (asyncio.TimeoutError, OSError):  # it reads nothing, or has gone
            return
        finally:
            self._on_end()
            gone.cancel()
            if following is not None:
                following.cancel()
                await asyncio.wait({following})
            await self._chunks.aclose()

    async def _next(self) -> bytes | None:
        return await anext(self._chunks, None)


async def disconnected(receive: Receive) -> None:
    """Return when the client has left. For requests whose body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass
