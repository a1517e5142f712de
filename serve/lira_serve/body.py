"""Read a request's body under limits of size and time."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from lira_serve.api_errors import ApiError, busy

_MOST_FIELDS = 32
_MOST_BODIES = 8  # of the largest size, at a time
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # of a pair, or alone: then the text is no Unicode
_MOST_VALUES = 1_000_000  # of JSON: an empty list of two bytes takes 64 in memory


class Bodies:
    """The bodies that arrive or are not yet understood, under limits of size and time, and of size for all.

    The queue does not bound them: a question has its place there only when its body was read.
    """

    def __init__(self, most_bytes: int, seconds: float) -> None:
        self._most_bytes = most_bytes
        self._seconds = seconds
        self._left = _MOST_BODIES * most_bytes

    @asynccontextmanager
    async def of(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the body; it counts until the block ends.

        Raises ApiError for a body that is too large (413) or takes too long (408), and if all together are
        too large (503).
        """
        body = bytearray()
        try:
            await self._read(request, body)
            yield bytes(body)
        finally:
            self._left += len(body)

    async def _read(self, request: Request, body: bytearray) -> None:
        declared = request.headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > self._most_bytes:
            raise self._too_large()
        try:
            with anyio.fail_after(self._seconds):
                async for chunk in request.stream():
                    self._left -= len(chunk)
                    body += chunk
                    if len(body) > self._most_bytes:
                        raise self._too_large()
                    if self._left < 0:
                        raise busy("too many large bodies arrive: ask again later", 5)
        except TimeoutError:
            raise ApiError(
                408, f"the body did not arrive within {self._seconds:g} s: send it faster"
            ) from None
        except ClientDisconnect:
            raise ApiError(400, "the client left before its body had arrived") from None

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body has more than {self._most_bytes:,} bytes; expected fewer: scale the picture down"
        )


def json_object(body: bytes) -> dict[str, Any]:
    """Return the object that a body holds. Raises ApiError (400) for anything else."""
    if sum(body.count(sign) for sign in (b",", b"[", b"{")) > _MOST_VALUES:
        raise ApiError(400, f"the body has more than {_MOST_VALUES:,} values; expected fewer")
    try:
        text = body.decode(json.detect_encoding(body))
        found = json.loads(text)
        if _SURROGATE.search(text):
            json.dumps(found, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # also of Unicode
        raise ApiError(400, f"the body is not JSON ({error}); expected an object") from None
    if not isinstance(found, dict):
        raise ApiError(400, f"the body is a JSON {type(found).__name__}; expected an object")
    return found


def media_type(request: Request) -> str:
    """Return the body's media type, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def form_of(request: Request, body: bytes) -> FormData:
    """Return the fields of a multipart body. Raises ApiError (400) if it is damaged."""

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body
        yield b""

    parser = MultiPartParser(
        request.headers, stream(), max_files=1, max_fields=_MOST_FIELDS, max_part_size=max(len(body), 1)
    )
    try:
        return await parser.parse()
    except (MultiPartException, KeyError, ValueError, AssertionError) as error:
        reason = getattr(error, "message", None) or str(error) or type(error).__name__
        raise ApiError(
            400, f"the multipart body cannot be read ({reason}); expected a file and fields"
        ) from None
