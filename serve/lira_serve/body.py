"""Read a request's body under limits of size and time."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import anyio
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from lira_serve.api_errors import ApiError

_MOST_FIELDS = 32
_MOST_VALUES = 1_000_000  # of JSON: an empty list of two bytes takes 64 in memory


async def read_body(request: Request, most_bytes: int, seconds: float) -> bytes:
    """Return the body. Raises ApiError for more than `most_bytes` (413), and if it takes too long (408)."""
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > most_bytes:
        raise _too_large(most_bytes)
    body = bytearray()
    try:
        with anyio.fail_after(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most_bytes:
                    raise _too_large(most_bytes)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {seconds:g} s: send it faster") from None
    except ClientDisconnect:
        raise ApiError(400, "the client left before its body had arrived") from None
    return bytes(body)


def json_object(body: bytes) -> dict[str, Any]:
    """Return the object that a body holds. Raises ApiError (400) for anything else."""
    if sum(body.count(sign) for sign in (b",", b"[", b"{")) > _MOST_VALUES:
        raise ApiError(400, f"the body has more than {_MOST_VALUES:,} values; expected fewer")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:  # also bytes that are not UTF-8
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


async def file_bytes(upload: UploadFile) -> bytes:
    """Return the bytes of an uploaded file."""
    return await upload.read()


def _too_large(most_bytes: int) -> ApiError:
    return ApiError(
        413, f"the body has more than {most_bytes:,} bytes; expected fewer: scale the picture down"
    )
