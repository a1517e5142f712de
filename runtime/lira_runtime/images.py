"""Open an image file as upright 8-bit RGB, without trusting the file.

The size in the header is checked before any pixel is decoded: a few bytes can claim gigabytes.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import numpy as np
from PIL import BmpImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from lira_engine.errors import LiraError, memory_errors_told
from lira_runtime import metadata
from lira_runtime.metadata import without_metadata

MAX_PIXELS = 100_000_000
MAX_SIDE = 65_535  # JPEG's own limit
_BAND_ROWS = 256
FORMATS = "JPEG, PNG, WebP or BMP"

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray

# Other formats, to name in the error: offset and signature as in their specifications.
_FOREIGN = (
    (0, b"GIF8", "a GIF image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (4, b"ftypavif", "an AVIF image"),
    (4, b"ftypheic", "a HEIC image"),
    (4, b"ftypmif1", "a HEIF image"),
    (4, b"ftyp", "a video"),
    (0, b"\0\0\1\0", "an icon"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"%PDF", "a PDF file"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"<?xml", "an XML file"),
)


def open_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS, upright: bool = True) -> Image.Image:
    """Open and decode an image.

    source: a path, the bytes of a file, an open binary file (read from its current position, which is then
    restored), a PIL image, or a uint8 array [H, W, 3] (RGB). JPEG, PNG, WebP and BMP.
    Returns a new image in mode RGB, turned upright by its EXIF orientation; `upright=False` leaves the pixels
    as stored and drops the orientation (annotations of data sets follow stored pixels). Other metadata are
    ignored, damaged or not. Transparency is dropped (as in upstream, the colour below it stays), and 16-bit
    greyscale is scaled to 8 bits.

    Raises LiraError for anything but a still image of these formats, for a damaged one, and for more than
    `max_pixels` pixels or a side of more than 65,535.
    """
    with memory_errors_told(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about metadata, or about the size, which is checked here
        if isinstance(source, np.ndarray):
            return _from_array(source, max_pixels)
        if isinstance(source, Image.Image):
            return _decode(source, "the image", max_pixels, upright)
        if isinstance(source, (bytes, bytearray, memoryview)):
            return _from_file(io.BytesIO(bytes(source)), "the image", max_pixels, upright)
        if isinstance(source, (str, os.PathLike)):
            return _from_path(os.fsdecode(source), max_pixels, upright)
        if callable(getattr(source, "read", None)):
            return _from_file(io.BytesIO(_rest_of(source)), "the image", max_pixels, upright)
    raise LiraError(
        f"the image is of type {type(source).__name__}, expected a path, bytes, a binary file, a PIL image "
        "or an array"
    )


def _from_path(name: str, max_pixels: int, upright: bool) -> Image.Image:
    try:
        with open(name, "rb") as file:
            return _from_file(cast(BinaryIO, _Bounded(file)), name, max_pixels, upright)
    except FileNotFoundError:
        raise LiraError(f"{name}: there is no such file, expected a {FORMATS} image") from None
    except IsADirectoryError:
        raise LiraError(f"{name} is a folder, expected a {FORMATS} image") from None
    except (OSError, ValueError) as error:  # no permission, a pipe, a name with a zero byte
        raise LiraError(f"{name} cannot be read: {_reason(error)}") from error


class _Bounded:
    """A file that allocates no more than it has: Pillow asks for what a damaged length says, up to 4 GB."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self.readline = file.seek, file.tell, file.readline
        self._read, self._size = file.read, os.fstat(file.fileno()).st_size

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self.tell(), 0)
        return self._read(left if size < 0 else min(size, left))


def _rest_of(file: BinaryIO) -> bytes:
    """Return a file's bytes from its current position, which is then restored."""
    try:
        start = file.tell() if hasattr(file, "seekable") and file.seekable() else None
        data = file.read()
        if start is not None:
            file.seek(start)
    except (OSError, ValueError) as error:  # closed, opened for writing
        raise LiraError(f"the image cannot be read: {_reason(error)}") from error
    if not isinstance(data, (bytes, bytearray)):
        raise LiraError("the image is a file of text, expected one that is opened in binary mode")
    return bytes(data)


def _from_array(array: np.ndarray, max_pixels: int) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        shape = "x".join(map(str, array.shape))
        raise LiraError(f"the image is a {array.dtype} array of {shape}, expected uint8 HxWx3 (RGB, 0..255)")
    _check_size((array.shape[1], array.shape[0]), "the image", max_pixels)
    return Image.fromarray(array)  # copied: Pillow keeps four bytes for each pixel


def _from_file(file: BinaryIO, name: str, max_pixels: int, upright: bool) -> Image.Image:
    head = file.read(64)
    file.seek(0)
    if not head:
        raise LiraError(f"{name} is empty (0 bytes), expected a {FORMATS} image")
    try:
        return _decode(_open_header(file, head, name, max_pixels), name, max_pixels, upright)
    except _Damaged as first:
        bare = without_metadata(file)
        if bare is None:
            raise
        try:
            return _decode(_open_header(bare, head, name, max_pixels), name, max_pixels, upright)
        except _Damaged:
            raise first from None


def _open_header(file: BinaryIO, head: bytes, name: str, max_pixels: int) -> ImageFile.ImageFile:
    """Read the header only. Image.open has limits of its own, and warns of attacks."""
    with _damage_told(name):
        return _parse_header(file, head, name, max_pixels)


def _parse_header(file: BinaryIO, head: bytes, name: str, max_pixels: int) -> ImageFile.ImageFile:
    if head.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile(file)  # of a multi-picture JPEG: the first picture
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile(file)
    if head.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile(file)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        _check_size(_webp_size(head), name, max_pixels)  # opening already allocates the canvas
        return WebPImagePlugin.WebPImageFile(file)
    for offset, signature, what in _FOREIGN:
        if head[offset:].startswith(signature):
            raise LiraError(f"{name} is {what}, expected {FORMATS}")
    raise LiraError(f"{name} is not an image, expected {FORMATS}")


def _webp_size(head: bytes) -> tuple[int, int]:
    """Canvas size from the first chunk (WebP container specification: VP8X, VP8L or VP8)."""
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", head, 26)
    return width & 0x3FFF, height & 0x3FFF


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise LiraError(f"{name} has {width} x {height} pixels, expected at least 1 x 1")
    if width * height > max_pixels or max(size) > MAX_SIDE:
        raise LiraError(
            f"{name} has {width:,} x {height:,} pixels, expected at most {max_pixels:,} in all "
            f"and {MAX_SIDE:,} on a side: scale it down"
        )


def _decode(image: Image.Image, name: str, max_pixels: int, upright: bool) -> Image.Image:
    _check_size(image.size, name, max_pixels)
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: a photo and its previews
    if frames > 1:
        kind = image.format or "image"
        raise LiraError(f"{name} is an animated {kind} with {frames} frames, expected a still image")
    with _damage_told(name):
        image.load()
        # After loading: some plugins read the orientation only then.
        turned = metadata.upright(image) if upright else image
        picture = turned if turned is not image and turned.mode == "RGB" else _to_rgb(turned, name)
        picture.info = {}  # without an orientation, so that nobody turns it again
        return picture


class _Damaged(LiraError):
    """The bytes of an image break its format."""


@contextmanager
def _damage_told(name: str) -> Iterator[None]:
    try:
        yield
    except (LiraError, MemoryError):
        raise
    except Exception as error:  # on damaged bytes, parsers and decoders raise any exception
        raise _Damaged(f"{name} is damaged or cut short: {_reason(error)}") from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise LiraError(f"{name} holds floating-point numbers, expected 8-bit or 16-bit values")
    if image.mode.startswith("I"):  # Pillow would clip 16 bits at 255
        return Image.fromarray(_eight_bits(np.asarray(image), name)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the same colours
    return image.convert("RGB")


def _eight_bits(values: np.ndarray, name: str) -> np.ndarray:
    """[H, W] of 16-bit values -> uint8, in bands of rows."""
    if values.min() < 0 or values.max() > 65_535:
        raise LiraError(f"{name} holds {values.min()}..{values.max()}, expected 16-bit values 0..65535")
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _BAND_ROWS):
        grey[top : top + _BAND_ROWS] = (values[top : top + _BAND_ROWS].astype(np.int64) + 128) // 257
    return grey


def _reason(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text.splitlines()[0]
