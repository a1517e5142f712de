"""Pictures, and the bodies of requests to the server. Whole requests: tests/serve/test_fuzz.py."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import anyio
import numpy as np
from fuzz.kind import Kind, folder_with
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.requests import Request

from lira_engine.errors import LiraError
from lira_runtime.images import open_image
from lira_serve.api_errors import ApiError
from lira_serve.body import form_of, json_object
from lira_serve.chat_request import ChatRequest, parse
from lira_serve.conversation import asked_of
from lira_serve.fetch import AllowedHosts
from lira_serve.model_info import ModelInfo
from lira_serve.picture_source import PictureSource
from lira_serve.pictures import picture_of_bytes, picture_of_data_uri
from lira_serve.segment import SegmentRequest

_MOST_BYTES = 20 << 20
_TASKS: dict[str, dict[str, Any]] = {"refseg": {"question": "Segment {expression}.", "needs_text": True}}


def image(data: bytes) -> None:
    """A picture, upright and as stored."""
    found = []
    for upright in (True, False):
        try:
            assert open_image(data, upright=upright).mode == "RGB"
        except LiraError as error:
            found.append(error)
    if found:
        raise found[0]


def image_file(data: bytes) -> None:
    """A picture by its path."""
    with folder_with(x_png=data) as folder:
        open_image(folder / "x.png")


def picture_text(data: bytes) -> None:
    """A picture as requests bring it: a data URI or base64."""
    with _told():  # bodies with lone surrogates are refused before (lira_serve.body)
        picture_of_data_uri(data.decode("utf-8", "replace"), max_bytes=_MOST_BYTES)


def chat_body(data: bytes) -> None:
    """The body of POST /v1/chat/completions."""
    info = ModelInfo("fuzzed", "cpu", "fp32", 4096, 12, _TASKS)
    with _told():
        wanted = parse(ChatRequest, json_object(data))
        info.check_name(wanted.model)
        anyio.run(asked_of, wanted, PictureSource(AllowedHosts(), _MOST_BYTES, 0), info)


def segment_body(data: bytes) -> None:
    """The body of POST /v1/segment."""
    with _told():
        wanted = parse(SegmentRequest, json_object(data))
        if wanted.image is not None:
            picture_of_data_uri(wanted.image, max_bytes=_MOST_BYTES)


def form_body(data: bytes) -> None:
    """The same as a form: a multipart body with the boundary `cut`."""
    header = [(b"content-type", b"multipart/form-data; boundary=cut")]
    request = Request({"type": "http", "method": "POST", "headers": header, "path": "/", "query_string": b""})
    with _told():
        form = anyio.run(form_of, request, data)
        upload = form.get("image")
        parse(SegmentRequest, {name: value for name, value in form.items() if isinstance(value, str)})
        if isinstance(upload, UploadFile):
            picture_of_bytes(anyio.run(upload.read), max_bytes=_MOST_BYTES)


@contextmanager
def _told() -> Iterator[None]:
    """A refusal of the server is as good as a LiraError, unless it blames itself."""
    try:
        yield
    except ApiError as error:
        if error.status >= 500:
            raise AssertionError(f"status {error.status}: {error}") from error
        raise LiraError(str(error)) from error


def _picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    values = np.random.default_rng(1).integers(0, 256, (12, 10, 4)).astype(np.uint8)
    made = Image.fromarray(values, "RGBA").convert(mode)
    file = io.BytesIO()
    made.save(file, kind, **options)
    return file.getvalue()


def _pictures() -> list[bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = io.BytesIO()
    Image.fromarray(np.arange(120, dtype=np.uint16).reshape(12, 10) * 500).save(deep, "PNG")
    return [
        _picture("PNG"), _picture("PNG", "P"), _picture("PNG", "RGBA"), _picture("PNG", "1"), deep.getvalue(),
        _picture("JPEG", exif=exif), _picture("JPEG", "CMYK"), _picture("JPEG", "L", progressive=True),
        _picture("WEBP"), _picture("WEBP", "RGBA", lossless=True), _picture("BMP"), _picture("BMP", "P"),
    ]  # fmt: skip


def _uri() -> str:
    return f"data:image/png;base64,{base64.b64encode(_picture('PNG')).decode()}"


def _chat() -> bytes:
    parts = [{"type": "image_url", "image_url": {"url": _uri()}}, {"type": "text", "text": "the star"}]
    asked: Mapping[str, Any] = {
        "model": "fuzzed",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "A star.", "lira": {"turn": "t"}},
            {"role": "user", "content": "why?"},
        ],
        "max_tokens": 2, "temperature": 0.5, "top_p": 1, "seed": 1, "n": 1, "stop": ["zzz"], "stream": True,
        "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 0,
        "lira": {"task": None, "ilvc": "auto", "max_tiles": 1, "top_k": 0, "attributes": ["red", "blue"]},
    }  # fmt: skip
    return json.dumps(asked).encode()


def _segment() -> bytes:
    asked = {
        "image": _uri(), "text": "the star", "task": "refseg", "formats": ["rle", "svg"], "tolerance": 1.0,
        "max_tiles": 1,
        "ilvc": "auto", "max_tokens": 2, "model": "fuzzed",
    }  # fmt: skip
    return json.dumps(asked).encode()


def _form() -> bytes:
    parts = [b'name="image"; filename="a.png"\r\n\r\n' + _picture("PNG"), b'name="text"\r\n\r\nthe star']
    parts += [b'name="formats"\r\n\r\nrle,svg', b'name="tolerance"\r\n\r\n1.5', b'name="max_tiles"\r\n\r\n2']
    lines = b"".join(b"--cut\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts)
    return lines + b"--cut--\r\n"


KINDS = (
    Kind("image", image, _pictures),
    Kind("image_file", image_file, _pictures),
    Kind("picture_text", picture_text, lambda: [_uri().encode(), base64.b64encode(_picture("BMP"))]),
    Kind("chat_body", chat_body, lambda: [_chat()], "json"),
    Kind("segment_body", segment_body, lambda: [_segment()], "json"),
    Kind("form_body", form_body, lambda: [_form()]),
)
