"""Masks as regions of Label Studio.

Its brush regions hold an RGBA picture of the size of the original as a list of bytes, in the format of the
package @thi.ng/rle-pack: a header (32 bits: number of values; 5: bits of a value, less 1; four times 4: bits
of a run's length, less 1), then runs (1 bit: all values equal; 2: which of the four sizes; length less 1;
value).
"""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np

from lira_serve.mask_formats.polygons import as_mask, mask_to_polygons

_CHANNELS = 4
_VALUE_BITS = 8
_LENGTH_BITS = np.array([3, 4, 8, 16])
_CHUNK = 1 << 16  # runs that are turned to bits at a time


def mask_to_label_studio(
    mask: np.ndarray,
    label: str,
    from_name: str = "tag",
    to_name: str = "image",
    *,
    score: float | None = None,
    item_id: str | None = None,
) -> dict[str, Any]:
    """[H, W] bool -> one item of a prediction's "result": a brush region, ready for JSON.

    from_name, to_name: the names of <BrushLabels> and <Image> in the project's configuration; `label` should
    be one of its labels. item_id: unique in the prediction; by default random.
    Raises ValueError for another shape.
    """
    mask = as_mask(mask)
    value = {"format": "rle", "rle": _brush(mask), "brushlabels": [label]}
    return _item("brushlabels", value, mask, from_name, to_name, score, item_id)


def mask_to_label_studio_polygons(
    mask: np.ndarray,
    label: str,
    from_name: str = "tag",
    to_name: str = "image",
    *,
    tolerance: float = 1.0,
    score: float | None = None,
) -> list[dict[str, Any]]:
    """[H, W] bool -> items of a prediction's "result": a polygon region for each part of the mask.

    Points are percent of width and height. Label Studio's polygons have no holes: the mask's are filled.
    Raises ValueError as `mask_to_polygons` does.
    """
    mask = as_mask(mask)
    percent = 100 / np.array(mask.shape[::-1])
    items = []
    for polygon in mask_to_polygons(mask, tolerance):
        points = (polygon.exterior * percent).tolist()
        value = {"points": points, "closed": True, "polygonlabels": [label]}
        items.append(_item("polygonlabels", value, mask, from_name, to_name, score, None))
    return items


def _item(
    kind: str,
    value: dict[str, Any],
    mask: np.ndarray,
    from_name: str,
    to_name: str,
    score: float | None,
    item_id: str | None,
) -> dict[str, Any]:
    item = {
        "id": item_id or uuid.uuid4().hex[:10],
        "type": kind,
        "from_name": from_name,
        "to_name": to_name,
        "original_width": mask.shape[1],
        "original_height": mask.shape[0],
        "image_rotation": 0,
        "value": value,
    }
    if score is not None:
        item["score"] = score
    return item


def _brush(mask: np.ndarray) -> list[int]:
    """[H, W] -> bytes of the packed RGBA picture: 255 in all channels of the object, 0 elsewhere."""
    values, lengths = _runs(mask)
    sizes = np.searchsorted(1 << _LENGTH_BITS, lengths)  # the smallest that holds the length
    length_bits = _LENGTH_BITS[sizes]
    runs = (4 | sizes) << length_bits | (lengths - 1)
    codes = runs << _VALUE_BITS | values
    widths = 3 + length_bits + _VALUE_BITS
    bits = [_bits(np.array([_CHANNELS * mask.size]), np.array([32]))]
    bits.append(_bits(np.array([_VALUE_BITS - 1, *(_LENGTH_BITS - 1)]), np.array([5, 4, 4, 4, 4])))
    for start in range(0, len(codes), _CHUNK):
        bits.append(_bits(codes[start : start + _CHUNK], widths[start : start + _CHUNK]))
    return np.packbits(np.concatenate(bits)).tolist()


def _runs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values, 0 or 255, and the lengths of the runs of the RGBA picture."""
    pixels = mask.ravel()
    starts = np.flatnonzero(np.r_[pixels.size > 0, pixels[1:] != pixels[:-1]])
    lengths = np.diff(np.r_[starts, pixels.size]) * _CHANNELS
    longest = 1 << int(_LENGTH_BITS[-1])
    pieces = -(-lengths // longest)
    values = np.repeat(pixels[starts] * 255, pieces)
    split = np.full(len(values), longest)
    split[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * longest
    return values.astype(np.int64), split


def _bits(codes: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Numbers and how many bits each takes -> uint8 [bits] of 0 and 1, highest bit first."""
    ends = np.cumsum(widths)
    shifts = np.repeat(ends, widths) - 1 - np.arange(ends[-1])
    return (np.repeat(codes, widths) >> shifts & 1).astype(np.uint8)
