"""Pictures of requests: what was sent before is not decoded again, and nothing else takes its place."""

from __future__ import annotations

import asyncio
import base64
import io
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from lira_serve import picture_source
from lira_serve.api_errors import ApiError
from lira_serve.fetch import AllowedHosts
from lira_serve.picture_source import PictureSource
from lira_serve.settings import Settings


def png(colour: str, size: tuple[int, int] = (8, 6)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format="PNG")
    return file.getvalue()


def uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What was decoded, in its order."""
    seen: list[object] = []
    for name in ("picture_of_bytes", "picture_of_data_uri"):
        function = getattr(picture_source, name)
        monkeypatch.setattr(
            picture_source,
            name,
            lambda it, function=function, **options: seen.append(it) or function(it, **options),
        )
    return seen


def source(kept_pixels: int = 1000) -> PictureSource:
    return PictureSource(AllowedHosts.of(()), 1 << 20, 4 * kept_pixels)


def test_the_same_picture_is_decoded_once(decoded: list[object]) -> None:
    async def ask() -> None:
        pictures = source()
        first, again = await pictures.at(uri(png("red"))), await pictures.at(uri(png("red")))
        assert again[0] is first[0] and again[1] == first[1]
        other = await pictures.at(uri(png("blue")))
        assert other[1] != first[1] and other[0].getpixel((0, 0)) == (0, 0, 255)
        assert len(decoded) == 2

    asyncio.run(ask())


def test_the_ones_used_last_are_kept(decoded: list[object]) -> None:
    async def ask() -> None:
        pictures = source(kept_pixels=2 * 48)
        for colour in ("red", "green", "red", "blue", "red", "green"):  # blue took green's place
            await pictures.of(png(colour))
        assert decoded == [png("red"), png("green"), png("blue"), png("green")]
        await pictures.of(png("white", (100, 100)))  # alone larger than the limit
        await pictures.of(png("white", (100, 100)))
        assert len(decoded) == 6

    asyncio.run(ask())


def test_text_of_a_picture_is_no_file_of_it() -> None:
    async def ask() -> None:
        pictures = source()
        text = base64.b64encode(png("red")).decode()
        await pictures.at(text)
        with pytest.raises(ApiError) as refused:
            await pictures.of(text.encode())
        assert refused.value.status == 400

    asyncio.run(ask())


@pytest.mark.parametrize(("scene_cache", "times"), [(0, 2), (1 << 30, 1)])
def test_a_server_keeps_no_more_bytes_of_pictures_than_of_scenes(
    serve: Any, nano_settings: Settings, decoded: list[object], scene_cache: int, times: int
) -> None:
    with serve.serving(replace(nano_settings, scene_cache=scene_cache)) as server:
        for _ in range(2):
            server.chat("Is there a fish?", uri(png("red")))
    assert len(decoded) == times
