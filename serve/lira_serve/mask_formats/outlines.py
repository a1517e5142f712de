"""Trace the outlines of a mask along the edges of its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np


class Outline(NamedTuple):
    """The border of one part of a mask: int32 [N, 2] rings of (x, y) corners, in which no corner repeats."""

    exterior: np.ndarray  # clockwise on the screen
    holes: list[np.ndarray]  # the other way


def trace(mask: np.ndarray) -> list[Outline]:
    """[H, W] bool -> the outlines of its 4-connected parts, in no order.

    Corners lie on the lattice between pixels: pixel (x, y) is the square (x, y)-(x + 1, y + 1). Pixels that
    touch only at a corner belong to different parts, so that the interior of every outline is connected.
    """
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    if not width:
        return []
    part = mask[top : top + height, left : left + width]
    points, starts, parents = _contours(part)
    points, starts = _without_repetition(points, starts)
    rings = np.split(points + np.array([left, top], np.int32), starts[1:])
    return _nested(rings, parents, _touch_themselves(points, starts))


def _contours(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return corners [N, 2], the first of each ring [R], and the ring around it [R]; ring 0 is the frame.

    OpenCV walks on pixel centres and joins diagonal neighbours. So it gets what is not the mask, with a frame
    around it, at twice the size: there the first of two pixels lies at one edge, the second at the other.
    """
    height, width = mask.shape
    rest = np.ones((2 * height + 2, 2 * width + 2), np.uint8)
    rest[1:-1, 1:-1] = (~mask).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(rest, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    lengths = np.array([len(contour) for contour in contours])
    starts = np.cumsum(lengths) - lengths
    points = np.concatenate(contours).reshape(-1, 2) // 2
    return points, starts, hierarchy.reshape(-1, 4)[:, 3]


def _without_repetition(points: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drop corners equal to the one before, then those on a straight line."""
    before, _ = neighbours(len(points), starts)
    points, starts = _kept(points, starts, (points != points[before]).any(axis=1))
    before, after = neighbours(len(points), starts)
    return _kept(points, starts, (points[before] != points[after]).all(axis=1))


def _kept(points: np.ndarray, starts: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return points[kept], (np.cumsum(kept) - kept)[starts]


def neighbours(count: int, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the index of the point before and after each of `count` on rings that start at `starts`."""
    before, after = np.arange(count) - 1, np.arange(count) + 1
    ends = np.append(starts[1:], count)
    before[starts], after[ends - 1] = ends - 1, starts
    return before, after


def repeated(points: np.ndarray) -> np.ndarray:
    """[N, 2] non-negative integers -> [N] bool: the point occurs more than once."""
    keys = points[:, 0].astype(np.int64) << 32 | points[:, 1]
    _, index, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return counts[index] > 1


def _touch_themselves(points: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the rings that pass a corner twice."""
    ring = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(points))))
    shared = repeated(points)
    within = np.unique(np.column_stack([ring, points])[shared], axis=0, return_counts=True)
    return np.unique(within[0][within[1] > 1, 0])


def _nested(rings: list[np.ndarray], parents: np.ndarray, touching: np.ndarray) -> list[Outline]:
    depths = np.zeros(len(rings), int)
    above = parents
    while (above >= 0).any():
        depths += above >= 0
        above = np.where(above >= 0, parents[above], -1)
    again = set(touching.tolist())
    outlines: dict[int, Outline] = {}
    for index in np.argsort(depths, kind="stable")[1:].tolist():  # without the frame
        pieces = _loops(rings[index]) if index in again else [rings[index]]
        if depths[index] % 2:
            exterior = pieces.pop(int(areas(pieces).argmax()) if len(pieces) > 1 else 0)
            outlines[index] = Outline(exterior, pieces)
        else:
            outlines[int(parents[index])].holes.extend(pieces)
    return list(outlines.values())


def _loops(ring: np.ndarray) -> list[np.ndarray]:
    """Cut a ring at the corners that it passes twice: a notch that closes at a corner becomes a hole."""
    loops = []
    path: list[tuple[int, int]] = []
    places: dict[tuple[int, int], int] = {}
    for corner in map(tuple, ring.tolist()):
        if corner in places:
            start = places[corner]
            loops.append(np.array(path[start:], np.int32))
            for passed in path[start:]:
                del places[passed]
            del path[start:]
        places[corner] = len(path)
        path.append(corner)
    loops.append(np.array(path, np.int32))
    return loops


def areas(rings: Sequence[np.ndarray]) -> np.ndarray:
    """[N, 2] each -> their areas [R]; negative if it runs anticlockwise on the screen (y points down)."""
    if not rings:
        return np.zeros(0)
    lengths = np.array([len(ring) for ring in rings])
    starts = np.cumsum(lengths) - lengths
    points = np.concatenate(rings).astype(np.float64)
    _, after = neighbours(len(points), starts)
    (x0, y0), (x1, y1) = points.T, points[after].T
    return np.add.reduceat(x0 * y1 - x1 * y0, starts) / 2
