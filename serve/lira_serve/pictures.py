"""Pictures as requests bring them: data URIs, bare base64, or the bytes of a file."""

from __future__ import annotations

import base64
import hashlib
import re
from urllib.parse import unquote_to_bytes

from PIL import Image

from lira_engine.errors import LiraError, OutOfMemory
from lira_runtime.images import FORMATS, open_image
from lira_serve.api_errors import ApiError, busy

_TYPES = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/jpg", "image/x-ms-bmp")
_UNSAID = ("", "application/octet-stream", "image/*")  # the bytes decide
_LONGEST_HEADER = 1000
_BAND_BYTES = 4 << 20
_URL_SAFE = str.maketrans("-_", "+/")
_RETRY_SECONDS = 10


def picture_of_data_uri(text: str, *, max_bytes: int) -> Image.Image:
    """A data URI (RFC 2397; base64 or percent-encoded) or bare base64 -> a new image, upright, in mode RGB.

    As in browsers, base64 may hold whitespace and lack padding; the URL-safe alphabet is read too. max_bytes:
    of the decoded file; a longer text is refused before it is decoded.
    Raises ApiError: 413 for more bytes, 400 for what is no picture (see `open_image`).
    """
    if len(text) > 4 * max_bytes + _LONGEST_HEADER:  # percent-encoded, a byte takes three characters
        raise _too_large(max_bytes)
    text = text.strip()
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]{0,30}):", text)
    if scheme is None:
        return picture_of_bytes(_of_base64(text, max_bytes), max_bytes=max_bytes)
    if scheme[1].lower() != "data":
        raise _refused(f"the picture is an address of scheme {scheme[1]!r}, expected a data: URI or base64")
    header, comma, contents = text[scheme.end() :].partition(",")
    if not comma or len(header) > _LONGEST_HEADER:
        raise _refused("the data URI has no comma after its type, expected data:image/png;base64,...")
    kind, *parameters = (part.strip().lower() for part in header.split(";"))
    if kind not in _TYPES + _UNSAID:
        raise _refused(f"the data URI is of type {kind[:60]!r}, expected {', '.join(_TYPES[:4])}")
    if "base64" not in parameters[-1:]:
        return picture_of_bytes(unquote_to_bytes(contents), max_bytes=max_bytes)
    if "%" in contents:
        contents = unquote_to_bytes(contents).decode("latin-1")
    return picture_of_bytes(_of_base64(contents, max_bytes), max_bytes=max_bytes)


def picture_of_bytes(data: bytes, *, max_bytes: int) -> Image.Image:
    """The bytes of an image file -> a new image, upright, in mode RGB.

    Raises ApiError: 413 for more than `max_bytes`, 400 for what `open_image` refuses, 503 without memory.
    """
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    try:
        return open_image(data)
    except OutOfMemory as error:
        raise busy(str(error), _RETRY_SECONDS) from error
    except LiraError as error:
        raise _refused(str(error)) from None


def picture_digest(image: Image.Image) -> str:
    """Return the SHA-256, in hexadecimal, of an image's width, height and RGB pixels. Raises ValueError for
    another mode."""
    if image.mode != "RGB":
        raise ValueError(f"image has mode {image.mode}, expected RGB")
    digest = hashlib.sha256(f"{image.width} x {image.height}\n".encode())
    rows = max(1, _BAND_BYTES // (3 * max(1, image.width)))
    for top in range(0, image.height, rows):
        digest.update(image.crop((0, top, image.width, min(top + rows, image.height))).tobytes())
    return digest.hexdigest()


def _of_base64(text: str, max_bytes: int) -> bytes:
    text = "".join(text.split())
    if len(text) > -(-max_bytes // 3) * 4:
        raise _too_large(max_bytes)
    for _ in range(2):
        text = text.removesuffix("=")
    if "-" in text or "_" in text:
        text = text.translate(_URL_SAFE)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise _refused(
            f"the picture is neither base64 nor a data URI, expected {FORMATS} in base64"
        ) from None


def _refused(message: str) -> ApiError:
    return ApiError(400, message, param="image", code="invalid_image")


def _too_large(max_bytes: int) -> ApiError:
    message = (
        f"the picture has more than {max_bytes:,} bytes, which is the limit: scale it down or compress it"
    )
    return ApiError(413, message, param="image", code="image_too_large")
