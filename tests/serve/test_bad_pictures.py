"""Pictures that are none, that claim too much, or that lie elsewhere; more masks than any model gives."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import zlib
from dataclasses import replace
from typing import Any

import httpx
import pytest
from invented import Desk, asking, chat, picture, refused, worker

from lira_serve.settings import Settings

CHAT = "/v1/chat/completions"


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header claims a size."""

    def piece(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 3_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + piece(b"IHDR", header) + piece(b"IDAT", pixels) + piece(b"IEND", b"")


BOMBS = {
    "png": png_of(50_000, 50_000),
    "png-of-one-row": png_of(2**31 - 1, 1),
    "webp": b"RIFF\xff\xff\xff\x7fWEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\x3f" * 2,
    "gzip": gzip.compress(png_of(10, 10), mtime=0),
    "zeros": b"\0" * 1_000_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_unopened(client: httpx.Client, name: str) -> None:
    text = base64.b64encode(BOMBS[name]).decode()
    for image in (text, f"data:image/png;base64,{text}"):
        assert refused(client.post("/v1/segment", json={"image": image, "text": "x"}))["param"] == "image"
    files = {"image": ("a.png", BOMBS[name])}
    assert refused(client.post("/v1/segment", files=files, data={"text": "x"}))["param"] == "image"


@pytest.mark.parametrize(
    "text", ["AAAA" * 500_000, "=" * 1000, "%00" * 1000, "data:image/png;base64," + "-_" * 500]
)
def test_base64_of_nothing_is_refused(client: httpx.Client, text: str) -> None:
    refused(client.post("/v1/segment", json={"image": text, "text": "x"}))


ADDRESSES = [
    "http://127.0.0.1:1/a.png",
    "https://example.org/a.png",
    "HTTP://example.org",
    "http://[::1",
    "http://\ud800/",
    "file:///etc/passwd",
    "ftp://example.org/a.png",
    "data:text/html;base64,PGI+",
    "data:image/svg+xml,<svg/>",
    "javascript:alert(1)",
    "/etc/passwd",
    "",
]


@pytest.mark.parametrize("address", ADDRESSES, ids=ascii)
def test_an_address_that_was_not_allowed_is_not_opened(client: httpx.Client, address: str) -> None:
    parts = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "What?"}]
    for path, body in (
        (CHAT, {"messages": [{"role": "user", "content": parts}]}),
        ("/v1/segment", {"image": address, "text": "x"}),
    ):
        refused(client.post(path, content=json.dumps(body)))


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "*.example.org", "example.org"])
def test_an_allowed_host_is_no_other(nano_settings: Settings, host: str) -> None:
    """Not even by the server's own addresses, userinfo, or a name that looks alike."""
    with asking(Desk(), replace(nano_settings, allowed_hosts=(host,))) as client:
        for address in (
            "http://127.0.0.1:8000/page/icon.svg",
            "http://localhost:8000/",
            "http://example.org@127.0.0.1/",
            "http://example.org.evil.invalid/",
            "http://2130706433:8000/",
            "http://0x7f000001:8000/",
        ):
            error = refused(client.post("/v1/segment", json={"image": address, "text": "x"}))
            assert error["param"] == "image", address


def test_ten_thousand_masks(nano_settings: Settings, serve: Any) -> None:
    desk = Desk(masks=10_000)
    with (
        serve.serving(nano_settings, lambda settings: worker(desk, settings)) as server,
        server.client() as client,
    ):
        body = {"image": picture(), "text": "x", "formats": ["rle", "png"]}
        masks = client.post("/v1/segment", json=body).json()["masks"]
        assert [mask["id"] for mask in masks] == list(range(10_000))
        assert {mask["area"] for mask in masks} == {1}
        assert masks[-1]["png"].startswith("data:image/png;base64,")
        whole = client.post(CHAT, json=chat()).json()["choices"][0]["message"]["lira"]
        assert len(whole["masks"]) == 10_000
        stream = client.post(CHAT, json=chat(stream=True)).text
        assert stream.count('"lira":{"type":"mask",') == 10_000 and stream.endswith("data: [DONE]\n\n")
