"""Masks as polygons with holes.

Coordinates are edges of pixels: pixel (x, y) is the square (x, y)-(x + 1, y + 1), so that x runs from 0 to
the width and y to the height. `cv2.findContours` gives centres of pixels instead, half a pixel inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lira_serve.mask_formats.outlines import areas, neighbours, trace
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
        exterior, *holes = np.abs(areas([self.exterior, *self.holes]))
        return float(exterior - sum(holes))

    def as_dict(self) -> dict[str, list]:
        """{"exterior": [[x, y], ...], "holes": [[[x, y], ...], ...]}, ready for JSON."""
        return {"exterior": self.exterior.tolist(), "holes": [hole.tolist() for hole in self.holes]}


def mask_to_polygons(mask: np.ndarray, tolerance: float = 1.0) -> list[Polygon]:
    """[H, W] bool -> one polygon with int32 corners for each 4-connected part, the largest exterior first.

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
    rings = [ring for outline in outlines for ring in (outline.exterior, *outline.holes)]
    if tolerance:
        rings = simplify(rings, tolerance)
    polygons, at = [], 0
    for outline in outlines:
        exterior, *holes = rings[at : at + 1 + len(outline.holes)]
        polygons.append(Polygon(exterior, tuple(holes)))
        at += 1 + len(holes)
    sizes = areas([polygon.exterior for polygon in polygons])
    return [polygons[index] for index in np.argsort(-sizes, kind="stable")]


def polygons_to_mask(polygons: Iterable[Polygon], height: int, width: int) -> np.ndarray:
    """Polygons -> [height, width] bool: the pixels whose centre lies in one of them.

    Rings may have any direction and leave the picture, but must not cross themselves.
    """
    polygons = list(polygons)
    rings = [
        np.asarray(ring, np.float64) for polygon in polygons for ring in (polygon.exterior, *polygon.holes)
    ]
    signs = np.array([sign for polygon in polygons for sign in (1, *[-1] * len(polygon.holes))])
    turns = np.zeros((height, width + 1), np.int32)  # how often a polygon begins, less how often one ends
    if rings:
        _add_turns(turns, rings, np.where(areas(rings) < 0, -signs, signs))
    return np.cumsum(turns, axis=1, out=turns)[:, :-1] > 0


def _add_turns(turns: np.ndarray, rings: Sequence[np.ndarray], signs: np.ndarray) -> None:
    height, width = turns.shape[0], turns.shape[1] - 1
    lengths = np.array([len(ring) for ring in rings])
    start = np.concatenate(rings)
    _, after = neighbours(len(start), np.cumsum(lengths) - lengths)
    end, signs = start[after], np.repeat(signs, lengths)
    tops = np.clip(np.ceil(np.minimum(start[:, 1], end[:, 1]) - 0.5), 0, height).astype(np.int64)
    bottoms = np.clip(np.ceil(np.maximum(start[:, 1], end[:, 1]) - 0.5), 0, height).astype(np.int64)
    counts = bottoms - tops  # rows whose centres an edge passes
    edges = np.repeat(np.arange(len(start)), counts)
    rows = np.arange(len(edges)) - np.repeat(np.cumsum(counts) - counts, counts) + tops[edges]
    (x0, y0), (x1, y1) = start[edges].T, end[edges].T
    crossings = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
    columns = np.clip(np.ceil(crossings - 0.5), 0, width).astype(np.int64)
    np.add.at(turns, (rows, columns), np.where(y1 < y0, signs[edges], -signs[edges]).astype(np.int32))


def as_mask(mask: np.ndarray) -> np.ndarray:
    """Return [H, W] as a bool array in C order. Raises ValueError for another shape."""
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"mask has shape {mask.shape}, expected [H, W]")
    return np.ascontiguousarray(mask, dtype=bool)
