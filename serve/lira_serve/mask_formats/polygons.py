"""Masks as polygons with holes.

Coordinates are edges of pixels: pixel (x, y) is the square (x, y)-(x + 1, y + 1), so that x runs from 0 to
the width and y to the height. `cv2.findContours` gives centres of pixels instead, half a pixel inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lira_serve.mask_formats.outlines import area, trace
from lira_serve.mask_formats.simplify import simplify


@dataclass(frozen=True, eq=False)
class Polygon:
    """One part of a mask: rings of (x, y) in pixels, [N, 2]; the first point is not repeated at the end.

    The exterior runs clockwise on the screen, the holes the other way. Rings cross neither themselves nor
    each other; two may touch at a corner.
    """

    exterior: np.ndarray
    holes: tuple[np.ndarray, ...] = ()

    @property
    def area(self) -> float:
        """Square pixels, without the holes."""
        return abs(area(self.exterior)) - sum(abs(area(hole)) for hole in self.holes)

    def as_dict(self) -> dict[str, list]:
        """{"exterior": [[x, y], ...], "holes": [[[x, y], ...], ...]}, ready for JSON."""
        return {"exterior": self.exterior.tolist(), "holes": [hole.tolist() for hole in self.holes]}


def mask_to_polygons(mask: np.ndarray, tolerance: float = 1.0) -> list[Polygon]:
    """[H, W] bool -> one polygon with int32 corners for each 4-connected part, the largest first.

    tolerance: how far, in pixels, the outline may lie from the edges of the mask's pixels. At 0 it is exact:
    `polygons_to_mask` gives the mask back, bit for bit. Above, rings have fewer corners (Douglas and Peucker,
    1973), but all parts and holes stay, none crosses another, and each keeps at least three quarters and at
    most five quarters of its area. A mask of more than 200,000 corners, which is noise, stays exact.

    Pixels that touch only at a corner are two parts. Raises ValueError for another shape, or a tolerance that
    is negative or not finite.
    """
    mask = as_mask(mask)
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance is {tolerance}, expected pixels: 0 (exact) or more")
    outlines = trace(mask)
    if tolerance:
        rings = simplify([ring for one in outlines for ring in (one.exterior, *one.holes)], tolerance)
    else:
        rings = [ring for one in outlines for ring in (one.exterior, *one.holes)]
    polygons, at = [], 0
    for one in outlines:
        exterior, *holes = rings[at : at + 1 + len(one.holes)]
        polygons.append(Polygon(exterior, tuple(holes)))
        at += 1 + len(holes)
    return sorted(
        polygons, key=lambda polygon: (-polygon.area, polygon.exterior[0, 1], polygon.exterior[0, 0])
    )


def polygons_to_mask(polygons: Iterable[Polygon], height: int, width: int) -> np.ndarray:
    """Polygons -> [height, width] bool: the pixels whose centre lies in one of them.

    Rings may have any direction and leave the picture, but must not cross themselves.
    """
    turns = np.zeros((height, width + 1), np.int32)  # how often a polygon begins, less how often one ends
    for polygon in polygons:
        _add(turns, polygon.exterior, 1)
        for hole in polygon.holes:
            _add(turns, hole, -1)
    return np.cumsum(turns, axis=1, out=turns)[:, :-1] > 0


def _add(turns: np.ndarray, ring: np.ndarray, sign: int) -> None:
    height, width = turns.shape[0], turns.shape[1] - 1
    start = np.asarray(ring, np.float64)
    end = np.roll(start, -1, axis=0)
    if area(start) < 0:
        sign = -sign
    tops = np.clip(np.ceil(np.minimum(start[:, 1], end[:, 1]) - 0.5), 0, height).astype(np.int64)
    bottoms = np.clip(np.ceil(np.maximum(start[:, 1], end[:, 1]) - 0.5), 0, height).astype(np.int64)
    counts = bottoms - tops  # rows whose centres an edge passes
    edges = np.repeat(np.arange(len(start)), counts)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(counts) - counts, counts) + tops[edges]
    (x0, y0), (x1, y1) = start[edges].T, end[edges].T
    crossings = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
    columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)
    np.add.at(turns, (rows, columns), np.where(y1 < y0, sign, -sign).astype(np.int32))


def as_mask(mask: np.ndarray) -> np.ndarray:
    """Return [H, W] as a bool array in C order. Raises ValueError for another shape."""
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"mask has shape {mask.shape}, expected [H, W]")
    return np.ascontiguousarray(mask, dtype=bool)
