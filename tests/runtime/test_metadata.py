"""The EXIF orientation is read; all other metadata are ignored, damaged or not."""

from __future__ import annotations

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, features

from lira_engine.errors import LiraError
from lira_runtime.images import open_image
from lira_runtime.metadata import without_metadata

WIDE, TURNED = (48, 32), (32, 48)
XMP = b"http://ns.adobe.com/xap/1.0/\0"


def stored(kind: str, **options: object) -> bytes:
    """Return an image whose left third is red."""
    pixels = np.full((32, 48, 3), 40, np.uint8)
    pixels[:, :16, 0] = 240
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")


def tiff(*entries: bytes, behind: bytes = b"") -> bytes:
    """Return an EXIF block; `behind` starts at byte 10 + 12 * len(entries) + 4."""
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return head + b"".join(entries) + b"\0" * 4 + behind


UPRIGHT_BY = entry(0x0112, 3, 1, struct.pack("<H", 6))
BEHIND = struct.pack("<I", 10 + 2 * 12 + 4)
ODD = {
    "signed rational -1/0": tiff(UPRIGHT_BY, entry(0x011A, 10, 1, BEHIND), behind=struct.pack("<ii", -1, 0)),
    "rational 0/0": tiff(UPRIGHT_BY, entry(0x011A, 5, 1, BEHIND), behind=b"\0" * 8),
    "double": tiff(UPRIGHT_BY, entry(0x9000, 12, 1, BEHIND), behind=struct.pack("<d", 1.5)),
    "not a number": tiff(UPRIGHT_BY, entry(0x011A, 11, 1, struct.pack("<f", float("nan")))),
    "value outside the block": tiff(UPRIGHT_BY, entry(0x010F, 2, 4000, struct.pack("<I", 10**6))),
    "unknown kind": tiff(UPRIGHT_BY, entry(0x9999, 77, 1, b"")),
    "a folder of itself": tiff(UPRIGHT_BY, entry(0x8769, 4, 1, struct.pack("<I", 8))),
}
NO_ORIENTATION = {
    "0": tiff(entry(0x0112, 3, 1, struct.pack("<H", 0))),
    "9": tiff(entry(0x0112, 3, 1, struct.pack("<H", 9))),
    "text": tiff(entry(0x0112, 2, 2, b"6\0")),
    "cut short": tiff(UPRIGHT_BY)[:15],
    "empty": b"",
    "noise": b"\xff" * 40,
}


def jpeg_with(payload: bytes, marker: int = 0xE1) -> bytes:
    data = stored("JPEG", quality=95)
    return data[:2] + bytes((0xFF, marker)) + struct.pack(">H", len(payload) + 2) + payload + data[2:]


def chunk(name: bytes, body: bytes, check: int | None = None) -> bytes:
    check = zlib.crc32(name + body) if check is None else check
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", check)


def png_with(name: bytes, body: bytes, check: int | None = None) -> bytes:
    data = stored("PNG")
    return data[:33] + chunk(name, body, check) + data[33:]


def webp_with(exif: bytes) -> bytes:
    return stored("WEBP", lossless=True, exif=exif)


@pytest.mark.parametrize("name", ODD)
def test_the_orientation_is_read_beside_damaged_values(name: str) -> None:
    exif = ODD[name]
    pictures = [jpeg_with(b"Exif\0\0" + exif), png_with(b"eXIf", exif)]
    if features.check("webp"):
        pictures.append(webp_with(exif))
    for data in pictures:
        assert open_image(data).size == TURNED
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, when it opens the file
            opened = Image.open(io.BytesIO(data))
        assert open_image(opened).size == TURNED
        assert open_image(data, upright=False).size == WIDE


@pytest.mark.parametrize("name", NO_ORIENTATION)
def test_an_invalid_orientation_is_ignored(name: str) -> None:
    exif = NO_ORIENTATION[name]
    for data in (jpeg_with(b"Exif\0\0" + exif), png_with(b"eXIf", exif)):
        assert open_image(data).size == WIDE


@pytest.mark.parametrize(
    "packet", [b"<x:xmpmeta>\xa8\xff</x:xmpmeta>", b"", b"\0\xff" * 50, "<a>\u00e9</a>".encode("utf-16")]
)
def test_xmp_that_is_not_utf8_is_ignored(packet: bytes) -> None:
    beside = jpeg_with(XMP + packet)
    assert open_image(beside).size == WIDE
    payload = b"Exif\0\0" + ODD["double"]
    turned = beside[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + beside[2:]
    assert open_image(turned).size == TURNED


def test_the_orientation_is_read_from_xmp_without_exif() -> None:
    packet = b"XML:com.adobe.xmp\0\0\0\0\0" + b'<rdf:Description tiff:Orientation="6"/>'
    assert open_image(png_with(b"iTXt", packet)).size == TURNED


def test_an_image_with_other_damaged_metadata_opens() -> None:
    expected = open_image(stored("JPEG", quality=95))
    for payload, marker in ((b"JFIF\0", 0xE0), (b"Photoshop 3.0\x008BIM\x03", 0xED), (b"", 0xFE)):
        assert_array_equal(np.asarray(open_image(jpeg_with(payload, marker))), np.asarray(expected))
    large = b"comment\0\0" + zlib.compress(b" " * 3_000_000)
    for data in (
        png_with(b"zTXt", large),
        png_with(b"tEXt", b"a\0b", check=0),
        png_with(b"iCCP", b"\xff" * 20),
        png_with(b"pHYs", b"\0"),
        png_with(b"gAMA", b""),
    ):
        assert_array_equal(np.asarray(open_image(data)), np.asarray(open_image(stored("PNG"))))


def test_what_says_how_to_read_pixels_is_no_metadata() -> None:
    """Adobe's segment sets the colour space; EXIF has the orientation."""

    def segment(kind: int, content: bytes) -> bytes:
        return b"\xff" + bytes([kind]) + struct.pack(">H", len(content) + 2) + content

    adobe, exif, table = segment(0xEE, b"Adobe\0d"), segment(0xE1, b"Exif\0\0MM"), segment(0xDB, b"table")
    others = segment(0xE0, b"JFIF\0"), segment(0xE1, XMP), segment(0xFE, b"a comment"), segment(0xED, b"3.0")
    pixels = b"\xff\xda and what follows \xff\xfe"
    data = b"\xff\xd8" + others[0] + adobe + others[1] + exif + others[2] + table + others[3] + pixels
    bare = without_metadata(io.BytesIO(data))
    assert bare is not None and bare.read() == b"\xff\xd8" + adobe + exif + table + pixels


def test_damaged_pixels_are_refused_with_and_without_metadata() -> None:
    data = png_with(b"tEXt", b"a\0b", check=0)
    with pytest.raises(LiraError, match="damaged or cut short"):
        open_image(data[: len(data) // 2])
    with pytest.raises(LiraError, match="damaged or cut short"):
        open_image(jpeg_with(b"JFIF\0", 0xE0)[:200])


def test_an_upright_image_is_not_turned_again() -> None:
    once = open_image(jpeg_with(b"Exif\0\0" + ODD["double"]))
    assert open_image(once).size == TURNED
    as_stored = open_image(jpeg_with(b"Exif\0\0" + ODD["double"]), upright=False)
    assert open_image(as_stored).size == WIDE
