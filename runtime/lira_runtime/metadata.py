"""An image's orientation, and the image without its other metadata.

Viewers show images with damaged metadata. Pillow's parsers refuse some of these.
"""

from __future__ import annotations

import io
import re
from typing import BinaryIO

from PIL import ExifTags, Image

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation (EXIF 2.32, tag 274) -> the transposition that turns the image upright."""

# Chunks about pixels, animation and orientation (PNG, third edition, 11).
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"eXIf")
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


def upright(image: Image.Image) -> Image.Image:
    """Return a decoded image turned upright: a new one, or `image` itself if it is upright."""
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """Return the orientation, 1 to 8, from EXIF or else XMP; 1 if neither can be read."""
    for read in (_from_pillow, _from_exif, _from_xmp):
        try:
            found = read(image)
        except Exception:  # on damaged metadata the parsers raise any exception
            continue
        if isinstance(found, int) and 1 <= found <= 8:
            return found
    return 1


def _from_pillow(image: Image.Image) -> object:
    return image.getexif().get(ExifTags.Base.Orientation)


def _from_exif(image: Image.Image) -> object:
    """Read EXIF alone: Pillow's getexif also parses XMP, which may be damaged."""
    exif = Image.Exif()
    exif.load(image.info["exif"])
    return exif.get(ExifTags.Base.Orientation)


def _from_xmp(image: Image.Image) -> object:
    packet = image.info.get("xmp") or image.info["XML:com.adobe.xmp"]
    found = _XMP_ORIENTATION.search(packet if isinstance(packet, bytes) else packet.encode())
    return found and int(found[1])


def without_metadata(file: BinaryIO) -> BinaryIO | None:
    """Return a JPEG or a PNG with only its pixels and its EXIF; None for other formats.

    Everything behind the first byte that breaks the format is kept.
    """
    file.seek(0)
    data = file.read()
    if data.startswith(b"\xff\xd8"):
        return io.BytesIO(_bare_jpeg(data))
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return io.BytesIO(_bare_png(data))
    return None


def _bare_jpeg(data: bytes) -> bytes:
    """Drop application segments (ITU-T T.81, B.2.4.6) but EXIF and Adobe's, which sets the colour space."""
    kept, at = [data[:2]], 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"\xda", b"\xff", b"\0", b""):
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at:end]
        application = 0xE0 <= segment[1] <= 0xEF or segment[1] == 0xFE
        if not application or segment[1] == 0xEE or segment[4:10] == b"Exif\0\0":
            kept.append(segment)
        at = end
    return b"".join([*kept, data[at:]])


def _bare_png(data: bytes) -> bytes:
    kept, at = [data[:8]], 8
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        if data[at + 4 : at + 8] in _PNG_CHUNKS:
            kept.append(data[at:end])
        at = end
    return b"".join([*kept, data[at:]])
