from __future__ import annotations

import io
import os
import struct
import tracemalloc
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from lira_engine.errors import LiraError, OutOfMemory
from lira_runtime.images import open_image

GRADIENT = np.stack(np.broadcast_arrays(*np.ogrid[:24, :36], 90), axis=-1).astype(np.uint8) * 2  # [24, 36, 3]


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture() -> Image.Image:
    return Image.fromarray(GRADIENT)


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG with a header and the given chunks."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", header), *chunks, (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data


def refusal(source: Any, **options: Any) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(LiraError) as caught:
            open_image(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- images that open ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_open_from_path_and_bytes(kind: str, tmp_path: Path) -> None:
    data = encode(picture(), kind, **({"lossless": True} if kind == "WEBP" else {}))
    path = tmp_path / "no_extension_needed"
    path.write_bytes(data)
    for source in (path, str(path), data, bytearray(data), memoryview(data)):
        image = open_image(source)
        assert image.mode == "RGB"
        assert_array_equal(np.asarray(image), GRADIENT)


def test_jpeg_decodes_as_in_pillow() -> None:
    data = encode(picture(), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert_array_equal(np.asarray(open_image(data)), expected)


def test_lossy_webp_decodes() -> None:
    assert open_image(encode(picture(), "WEBP")).size == (36, 24)


def test_multi_picture_jpeg_gives_the_first_picture() -> None:
    data = encode(picture(), "MPO", save_all=True, append_images=[Image.new("RGB", (36, 24))])
    for source in (data, Image.open(io.BytesIO(data))):
        assert np.abs(np.asarray(open_image(source), dtype=int) - GRADIENT).mean() < 10


def test_pil_image_and_array_are_copied() -> None:
    image, array = picture(), GRADIENT.copy()
    from_image, from_array = open_image(image), open_image(array)
    image.paste((0, 0, 0), (0, 0, 36, 24))
    array[:] = 0
    assert_array_equal(np.asarray(from_image), GRADIENT)
    assert_array_equal(np.asarray(from_array), GRADIENT)


def test_array_views_are_read() -> None:
    view = GRADIENT[::-1, ::2, ::-1]
    assert_array_equal(np.asarray(open_image(view)), view)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    source = picture().convert(mode)
    expected = np.asarray(source.convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_array_equal(np.asarray(open_image(source)), expected)
        if mode in ("1", "L", "LA", "P", "RGBA"):
            assert_array_equal(np.asarray(open_image(encode(source, "PNG"))), expected)


def test_cmyk_jpeg_becomes_rgb() -> None:
    data = encode(picture().convert("CMYK"), "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert_array_equal(np.asarray(open_image(data)), expected)


def test_alpha_is_dropped_and_the_colour_below_stays() -> None:
    array = np.dstack([GRADIENT, np.zeros((24, 36), np.uint8)])
    assert_array_equal(np.asarray(open_image(encode(Image.fromarray(array), "PNG"))), GRADIENT)


def test_palette_with_transparency_gives_no_warning() -> None:
    source = picture().quantize(16)
    data = encode(source, "PNG", transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_array_equal(np.asarray(open_image(data)), np.asarray(source.convert("RGB")))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, ">u2"])
def test_sixteen_bit_greyscale_is_scaled_not_clipped(dtype: Any) -> None:
    values = np.array([[0, 128, 129, 257], [32_768, 65_279, 65_407, 65_535]])
    expected = np.array([[0, 0, 1, 1], [128, 254, 255, 255]], dtype=np.uint8)
    source = Image.fromarray(values.astype(dtype))
    found = np.asarray(open_image(source))
    assert_array_equal(found, expected[..., None].repeat(3, -1))
    if dtype is np.uint16:
        assert_array_equal(np.asarray(open_image(encode(source, "PNG"))), found)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_exif_orientation_turns_the_image_upright(orientation: int, kind: str) -> None:
    """In each of the eight orientations the bright corner ends up top left."""
    upright = np.zeros((32, 48, 3), dtype=np.uint8)
    upright[:8, :8] = 255
    undo = [
        lambda a: a,
        lambda a: a[:, ::-1],
        lambda a: a[::-1, ::-1],
        lambda a: a[::-1],
        lambda a: a.swapaxes(0, 1),
        lambda a: np.rot90(a),
        lambda a: np.rot90(a, 2).swapaxes(0, 1),
        lambda a: np.rot90(a, -1),
    ]
    stored = np.ascontiguousarray(undo[orientation - 1](upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(stored), kind, exif=exif)
    for source in (data, Image.open(io.BytesIO(data))):
        found = np.asarray(open_image(source), dtype=int)
        assert found.shape == upright.shape
        assert np.abs(found - upright).mean() < 10


def test_damaged_exif_is_ignored() -> None:
    data = encode(picture(), "JPEG", exif=b"Exif\0\0MM\0*" + b"\xff" * 40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert open_image(data).size == (36, 24)


@pytest.mark.parametrize("size", [(1, 1), (1, 60_000), (60_000, 1), (2, 3)])
def test_tiny_and_thin_images_open(size: tuple[int, int]) -> None:
    assert open_image(encode(Image.new("RGB", size), "PNG")).size == size


class Reader:
    """A stream that can only be read, like that of a network."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self) -> bytes:
        return self._data


def test_an_open_file_is_read_from_its_position(tmp_path: Path) -> None:
    data = encode(picture(), "PNG")
    path = tmp_path / "picture"
    path.write_bytes(b"a header " + data)
    with open(path, "rb") as file:
        file.seek(9)
        for _ in range(2):
            assert_array_equal(np.asarray(open_image(file)), GRADIENT)
            assert file.tell() == 9 and not file.closed
    memory = io.BytesIO(data)
    assert_array_equal(np.asarray(open_image(memory)), GRADIENT)
    assert_array_equal(np.asarray(open_image(Reader(data))), GRADIENT)
    assert not memory.closed


# --- sources that are refused -------------------------------------------------------------------------------


def test_missing_file_folder_and_unreadable_name_are_refused(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "cat.png")
    assert "is a folder" in refusal(tmp_path)
    assert "cannot be read" in refusal("cat\0.png")
    (tmp_path / "file").write_bytes(b"x")
    assert "cannot be read" in refusal(tmp_path / "file" / "cat.png")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    path.touch()
    assert refusal(path) == f"{path} is empty (0 bytes), expected a JPEG, PNG, WebP or BMP image"
    assert "0 bytes" in refusal(b"")


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"hello, world", "not an image"),
        (b"\0" * 1000, "not an image"),
        (b"<?xml version='1.0'?><svg/>", "an XML file"),
        (b"%PDF-1.7", "a PDF file"),
        (b"\0\0\0\x18ftypmp42", "a video"),
        (b"\0\0\0\x18ftypheic", "a HEIC image"),
    ],
)
def test_other_files_are_named_in_the_error(data: bytes, what: str) -> None:
    assert what in refusal(data)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "ICO"])
def test_other_image_formats_are_refused(kind: str) -> None:
    assert "expected JPEG, PNG, WebP or BMP" in refusal(encode(picture(), kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_file_cut_short_anywhere_is_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    for keep in (2, 3, 8, 12, 16, 20, 26, 30, 33, 60, 200, len(data) // 2, len(data) * 9 // 10):
        message = refusal(data[:keep])
        assert "damaged or cut short" in message or "not an image" in message


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_random_damage_is_an_image_or_a_refusal(kind: str) -> None:
    data = encode(picture(), kind)
    rng = np.random.default_rng(0)
    for _ in range(150):
        broken = bytearray(data)
        for place in rng.integers(0, len(data), 6):
            broken[place] = rng.integers(0, 256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert open_image(bytes(broken)).mode == "RGB"
            except LiraError as error:
                assert "\n" not in str(error)


def huge_headers() -> dict[str, bytes]:
    jpeg = bytearray(encode(picture(), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    bmp = bytearray(encode(picture(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60_000, 60_000)
    side = (60_000 - 1).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<I", 10) + b"\0" * 4 + side + side
    lossy = bytearray(encode(picture(), "WEBP"))
    lossy[26:30] = struct.pack("<HH", 16_383, 16_383)
    lossless = b"VP8L" + struct.pack("<I", 5) + b"\x2f" + struct.pack("<I", 16_382 | 16_382 << 14)
    return {
        "JPEG": bytes(jpeg),
        "PNG": png(60_000, 60_000, (b"IDAT", zlib.compress(b"\0"))),
        "BMP": bytes(bmp),
        "WebP extended": b"RIFF" + struct.pack("<I", 4 + len(extended)) + b"WEBP" + extended,
        "WebP lossy": bytes(lossy),
        "WebP lossless": b"RIFF" + struct.pack("<I", 4 + len(lossless)) + b"WEBP" + lossless,
    }


@pytest.mark.parametrize("name", huge_headers())
def test_a_header_that_claims_too_much_is_refused_before_decoding(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoding(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoding)
    message = refusal(huge_headers()[name])
    assert "at most 100,000,000 in all" in message
    assert "60,000 x 60,000" in message or "16,38" in message


def test_limits_hold_for_every_kind_of_source() -> None:
    for source in (picture(), GRADIENT, encode(picture(), "BMP")):
        assert "36 x 24 pixels" in refusal(source, max_pixels=36 * 24 - 1)
    assert open_image(picture(), max_pixels=36 * 24).size == (36, 24)
    assert "65,535 on a side" in refusal(Image.new("1", (70_000, 1)))


def test_an_image_without_pixels_is_refused() -> None:
    assert "0 x 5 pixels" in refusal(Image.new("RGB", (0, 5)))
    refusal(png(0, 5))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    data = encode(picture(), kind, save_all=True, append_images=[Image.new("RGB", (36, 24))])
    assert f"animated {kind} with 2 frames" in refusal(data)
    assert "2 frames" in refusal(Image.open(io.BytesIO(data)))


def test_arrays_of_the_wrong_kind_are_refused() -> None:
    assert "float32 array of 4x5x3, expected uint8 HxWx3" in refusal(np.zeros((4, 5, 3), np.float32))
    for shape in ((4, 5), (4, 5, 4), (3, 4, 5), (0, 5, 3), (1, 4, 5, 3)):
        assert "expected uint8" in refusal(np.zeros(shape, np.uint8))


def test_values_outside_16_bits_are_refused() -> None:
    assert "floating-point" in refusal(Image.new("F", (3, 3)))
    assert "expected 16-bit values" in refusal(Image.fromarray(np.array([[70_000]], np.int32)))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    path.write_bytes(encode(picture(), "PNG"))
    with open(path, encoding="latin-1") as file:
        assert "a file of text, expected one that is opened in binary mode" in refusal(file)
    assert "cannot be read" in refusal(file)  # closed
    with open(tmp_path / "new", "wb") as writing:
        assert "cannot be read" in refusal(writing)
    assert "is empty" in refusal(io.BytesIO())


@pytest.mark.parametrize("source", [None, 5, 2.5, True, ["a.png"], {}, object()])
def test_other_types_than_images_are_refused(source: object) -> None:
    expected = f"the image is of type {type(source).__name__}, expected a path, bytes, a binary file, a PIL"
    assert refusal(source).startswith(expected)


def test_a_file_whose_name_is_not_utf8_opens(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        with open(name, "wb") as file:
            file.write(encode(picture(), "PNG"))
    except OSError:  # macOS
        pytest.skip("this file system has UTF-8 names only")
    assert open_image(os.fsdecode(name)).size == (36, 24)


def test_refused_memory_is_not_reported_as_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(OutOfMemory, match="out of memory"):
        open_image(encode(picture(), "PNG"))


def test_a_damaged_length_does_not_ask_for_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (9, 9), "red").save(path)
    data = path.read_bytes()
    at = data.index(b"IDAT") - 4
    path.write_bytes(data[:at] + b"\x7f\xff\xff\xff" + data[at + 4 :])
    tracemalloc.start()
    try:
        with suppress(LiraError):  # Pillow may read all pixels before it comes to the end of the file
            open_image(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
