"""Decode and check COCO segmentations of every kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

from lira_bench.accuracy.files import short
from lira_engine.errors import LiraError
from lira_runtime import rle


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Return the mask of a segmentation, bool [height, width].

    It may be polygons ([[x0, y0, x1, y1, ...], ...]), run lengths as a list (COCO's "uncompressed") or as a
    string, or a list of run lengths, which means their union. Raises LiraError for a mask of another size,
    and for anything else.
    """
    return np.asarray(layers(segmentation, height, width) > 0)


def layers(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Return how many parts of a segmentation cover each pixel, int64 [height, width]. Raises as `decode`."""
    if isinstance(segmentation, Mapping):
        return _from_runs(segmentation, height, width).astype(np.int64)
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str) or not segmentation:
        raise LiraError("the segmentation is neither polygons nor run lengths")
    if all(isinstance(part, Mapping) for part in segmentation):
        count = np.zeros((height, width), dtype=np.int64)
        for part in segmentation:
            count += _from_runs(part, height, width)
        return count
    for polygon in segmentation:
        _check_polygon(polygon, height, width)
    drawn = coco.decode(coco.frPyObjects([list(map(float, part)) for part in segmentation], height, width))
    return np.asarray(drawn.sum(axis=2, dtype=np.int64))


def outside(segmentation: Any, size: tuple[int, int]) -> bool:
    """Return whether a polygon reaches more than a pixel out of an image of `size` (width, height)."""
    polygons = [part for part in segmentation if not isinstance(part, str | Mapping)]
    return any(value > size[index % 2] + 1 for polygon in polygons for index, value in enumerate(polygon))


def _from_runs(encoded: Mapping[str, Any], height: int, width: int) -> np.ndarray:
    size = encoded.get("size")
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int for side in size):
        raise LiraError("the run lengths have no size, expected [height, width]")
    if size != [height, width]:
        raise LiraError(
            f"the mask is {short(size[1])} x {short(size[0])} (width x height), "
            f"expected the image's {width} x {height}"
        )
    counts = encoded.get("counts")
    if not isinstance(counts, list | str):
        raise LiraError(f"the counts of the run lengths are {short(counts)}, expected a list or a text")
    if isinstance(counts, str):
        return rle.decode(encoded)
    if not all(type(run) is int and run >= 0 for run in counts) or sum(counts) != height * width:
        raise LiraError(f"the run lengths do not cover {width} x {height} pixels")
    inside = np.arange(len(counts)) % 2 == 1  # column after column, the first run outside
    return np.repeat(inside, counts).reshape(width, height).T


def _check_polygon(polygon: Any, height: int, width: int) -> None:
    if not isinstance(polygon, Sequence) or isinstance(polygon, str):
        raise LiraError("the segmentation is neither polygons nor run lengths")
    if len(polygon) < 6 or len(polygon) % 2:
        raise LiraError(f"a polygon has {len(polygon)} numbers, expected pairs of at least three corners")
    for index, value in enumerate(polygon):
        side = height if index % 2 else width
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not -side <= value <= 2 * side:  # far corners cost time to trace; nan fails, too
            raise LiraError(
                f"a polygon has the corner {short(value)}, far outside of {width} x {height} pixels"
            )
