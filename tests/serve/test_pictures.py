"""Pictures of data URIs: what browsers send, what breaks, and what is too large."""

from __future__ import annotations

import base64
import io
import zlib
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from lira_serve import pictures
from lira_serve.api_errors import ApiError
from lira_serve.pictures import picture_digest, picture_of_bytes, picture_of_data_uri

PIXELS = np.random.default_rng(4).integers(0, 256, (9, 7, 3), np.uint8)
LIMIT = 10_000


def file_of(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind)
    return file.getvalue()


PNG = file_of("PNG")
TEXT = base64.b64encode(PNG).decode()


def spellings() -> dict[str, str]:
    wrapped = "\r\n".join(TEXT[at : at + 76] for at in range(0, len(TEXT), 76))
    return {
        "data URI": f"data:image/png;base64,{TEXT}",
        "capitals": f"DATA:Image/PNG;BASE64,{TEXT}",
        "parameters": f"data:image/png;charset=utf-8;name=a.png;base64,{TEXT}",
        "another type": f"data:image/jpeg;base64,{TEXT}",  # the bytes decide
        "no type": f"data:;base64,{TEXT}",
        "bytes": f"data:application/octet-stream;base64,{TEXT}",
        "bare": TEXT,
        "wrapped": f"  data:image/png;base64,{wrapped}\n",
        "bare and wrapped": wrapped + "\n",
        "no padding": f"data:image/png;base64,{TEXT.rstrip('=')}",
        "URL-safe": f"data:image/png;base64,{TEXT.replace('+', '-').replace('/', '_')}",
        "escaped base64": f"data:image/png;base64,{quote(TEXT, safe='')}",
        "percent": f"data:image/png,{quote(PNG)}",
        "all percent": "data:image/png," + "".join(f"%{byte:02x}" for byte in PNG),
    }


@pytest.mark.parametrize("spelling", spellings())
def test_every_spelling_is_read(spelling: str) -> None:
    image = picture_of_data_uri(spellings()[spelling], max_bytes=len(PNG))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), PIXELS)


def test_the_example_tests_every_character_of_base64() -> None:
    assert "+" in TEXT and "/" in TEXT and TEXT.endswith("=")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "JPEG"])
def test_every_format_is_read(kind: str) -> None:
    assert picture_of_bytes(file_of(kind), max_bytes=LIMIT).size == (7, 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64", "no comma"),
        ("data:" + "a" * 3000 + "," + TEXT, "no comma"),
        (f"data:image/gif;base64,{TEXT}", "'image/gif', expected image/jpeg"),
        (f"data:text/html;base64,{TEXT}", "'text/html'"),
        ("data:image/png;base64,****", "neither base64 nor a data URI"),
        ("data:image/png;base64,Zm9v=Zm9v", "neither base64"),
        ("Zm9v=", "not an image"),
        ("Zm9vY", "neither base64"),
        ("äöü", "neither base64"),
        ("\ud800", "neither base64"),
        ("file:///etc/passwd", "scheme 'file'"),
        ("ftp://example.org/a.png", "scheme 'ftp'"),
        ("javascript:alert(1)", "scheme 'javascript'"),
        ("data:image/svg+xml,<svg/>", "'image/svg\\+xml'"),
        ("data:image/png,hello", "not an image"),
        (TEXT[: len(TEXT) // 2 // 4 * 4], "damaged or cut short"),
    ],
)
def test_what_is_no_picture_is_refused(text: str, message: str) -> None:
    with pytest.raises(ApiError, match=message) as caught:
        picture_of_data_uri(text, max_bytes=LIMIT)
    assert (caught.value.status, caught.value.param) == (400, "image")
    assert "\n" not in caught.value.message and len(caught.value.message) < 300


@pytest.mark.parametrize("spelling", ["data URI", "bare", "wrapped", "escaped base64", "percent"])
def test_a_byte_more_than_the_limit_is_refused(spelling: str) -> None:
    with pytest.raises(ApiError, match="more than") as caught:
        picture_of_data_uri(spellings()[spelling], max_bytes=len(PNG) - 1)
    assert caught.value.status == 413


@pytest.mark.parametrize(
    "prefix", ["", "data:image/png;base64,", "data:image/png,", "data:image/png;base64,%"]
)
def test_a_long_text_is_refused_before_it_is_decoded(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base64, "b64decode", pytest.fail)
    monkeypatch.setattr(pictures, "unquote_to_bytes", pytest.fail)
    with pytest.raises(ApiError) as caught:
        picture_of_data_uri(prefix + "A" * 8 * LIMIT, max_bytes=LIMIT)
    assert caught.value.status == 413


def test_a_header_that_claims_many_pixels_is_refused() -> None:
    bomb = bytearray(file_of("PNG"))
    bomb[16:24] = (65_000).to_bytes(4, "big") * 2
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    with pytest.raises(ApiError, match="65,000 x 65,000 pixels"):
        picture_of_bytes(bytes(bomb), max_bytes=LIMIT)


# Digests


def digest(pixels: np.ndarray) -> str:
    return picture_digest(Image.fromarray(pixels))


def test_equal_pixels_have_equal_digests_in_every_format() -> None:
    found = {picture_digest(picture_of_bytes(file_of(kind), max_bytes=LIMIT)) for kind in ("PNG", "BMP")}
    assert found == {digest(PIXELS)}
    assert len(found.pop()) == 64


def test_other_pixels_and_other_shapes_have_other_digests() -> None:
    changed = PIXELS.copy()
    changed[8, 6, 2] ^= 1
    shapes = [PIXELS, changed, PIXELS.reshape(7, 9, 3), PIXELS.reshape(63, 1, 3), PIXELS[:, ::-1]]
    assert len(set(map(digest, shapes))) == len(shapes)


def test_the_digest_of_a_picture_in_several_bands() -> None:
    """Every row counts, also the last band's."""
    large = np.zeros((3000, 1000, 3), np.uint8)
    found = {digest(large)}
    for row in (0, 1397, 1398, 2999):
        changed = large.copy()
        changed[row, 999, 2] = 1
        found.add(digest(changed))
    assert len(found) == 5


def test_a_digest_is_of_rgb_only() -> None:
    with pytest.raises(ValueError, match="expected RGB"):
        picture_digest(Image.new("L", (2, 2)))
