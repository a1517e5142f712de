"""Of all that cameras and programs write into a picture beside its pixels, only the orientation matters here.

Viewers show a picture whatever its metadata are like, and so must we; Pillow's parsers give up on some.
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
"""What makes a picture upright, by the EXIF orientation that it has (EXIF 2.32, tag 274)."""

# Chunks that decide pixels, whether there is one picture, or how it is turned (PNG, third edition, 11).
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"eXIf")
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


def upright(image: Image.Image) -> Image.Image:
    """A decoded image as it is to be looked at: a new one, or `image` itself where it is not turned."""
    turn = _TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """1 to 8 as EXIF or, without it, XMP says; 1 where neither can be read."""
    for read in (_from_pillow, _from_exif, _from_xmp):
        try:
            found = read(image)
        except Exception:  # the parsers raise whatever an odd byte leads to
            continue
        if isinstance(found, int) and 1 <= found <= 8:
            return found
    return 1


def _from_pillow(image: Image.Image) -> object:
    return image.getexif().get(ExifTags.Base.Orientation)


def _from_exif(image: Image.Image) -> object:
    """Without the XMP that Pillow looks into as well."""
    exif = Image.Exif()
    exif.load(image.info["exif"])
    return exif.get(ExifTags.Base.Orientation)


def _from_xmp(image: Image.Image) -> object:
    packet = image.info.get("xmp") or image.info["XML:com.adobe.xmp"]
    found = _XMP_ORIENTATION.search(packet if isinstance(packet, bytes) else packet.encode())
    return found and int(found[1])


def without_metadata(file: BinaryIO) -> BinaryIO | None:
    """A JPEG or a PNG with nothing but its pixels and its EXIF; None for other formats.

    From the first byte on that is not as the format has it, everything is kept.
    """
    file.seek(0)
    data = file.read()
    if data.startswith(b"\xff\xd8"):
        return io.BytesIO(_bare_jpeg(data))
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return io.BytesIO(_bare_png(data))
    return None


def _bare_jpeg(data: bytes) -> bytes:
    """Without application segments (ITU-T T.81, B.2.4.6), Adobe's excepted, which tells the colours."""
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
