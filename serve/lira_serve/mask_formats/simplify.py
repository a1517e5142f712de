"""Leave corners out of rings, without letting one cross another."""

from __future__ import annotations

from itertools import count

import numpy as np

from lira_serve.mask_formats.outlines import areas, neighbours, repeated

MOST_CORNERS = 200_000  # a mask with more is noise, which would take minutes and hardly get smaller
_AREA = 0.25  # the share of its area that a ring may gain or lose
_LEAST = 0.44  # pixels; no step of a pixel lies nearer to the line that would replace it
_PATIENCE = 8  # rounds after which a line in conflict gets all its corners back, not the farthest one


def simplify(rings: list[np.ndarray], tolerance: float) -> list[np.ndarray]:
    """Rings int32 [N, 2] of a mask -> rings with some of the same corners, within `tolerance` of the old.

    Douglas and Peucker (1973) on each ring, with distances to the line segment, so that the bound holds both
    ways. A ring whose area would change by more than a quarter is done again at half the tolerance. Then the
    lines that would cross another, or pass over a corner that was on their other side (Saalfeld, 1999), get
    corners back until there are none. Rings with more than `MOST_CORNERS` in all stay exact.
    """
    if not 0 < sum(map(len, rings)) <= MOST_CORNERS:
        return rings
    points = np.concatenate(rings).astype(np.int64)
    lengths = np.array([len(ring) for ring in rings])
    starts = np.cumsum(lengths) - lengths
    before, after = neighbours(len(points), starts)
    # Where rings touch, the lines on both sides stay as they are: no cross can appear there.
    touching = repeated(points)
    fixed = touching | touching[before] | touching[after]
    exact = areas(rings)
    kept = [
        _thinned(ring, its, whole, tolerance)
        for ring, its, whole in zip(rings, np.split(fixed, starts[1:]), exact, strict=True)
    ]
    changed = True
    while changed:
        _untangle(rings, kept, tolerance)
        found = areas([ring[keep] for ring, keep in zip(rings, kept, strict=True)])
        changed = False
        for index in np.flatnonzero(np.abs(found / exact - 1) > _AREA):
            kept[index][:] = changed = True
    return [ring[keep] for ring, keep in zip(rings, kept, strict=True)]


def _thinned(ring: np.ndarray, fixed: np.ndarray, exact: float, tolerance: float) -> np.ndarray:
    """[N, 2], [N] bool, area -> [N] bool: the corners that stay."""
    while len(ring) > 4 and tolerance > _LEAST:
        kept = fixed.copy()
        if kept.sum() < 2:
            first = int(kept.argmax()) if kept.any() else int(_lengths(ring - ring[0]).argmax())
            kept[[first, int(_lengths(ring - ring[first]).argmax())]] = True
        anchors = np.flatnonzero(kept)
        ends = np.append(anchors[1:], anchors[0] + len(ring))
        _keep_far(ring, kept, list(zip(anchors.tolist(), ends.tolist(), strict=True)), tolerance)
        if kept.sum() > 2 and abs(areas([ring[kept]])[0] / exact - 1) <= _AREA:
            return kept
        tolerance /= 2
    return np.ones(len(ring), bool)


def _keep_far(ring: np.ndarray, kept: np.ndarray, arcs: list[tuple[int, int]], tolerance: float) -> None:
    """Keep corners inside arcs (from, to, which may pass the ring's end) until all are near to a line."""
    while arcs:
        start, end = arcs.pop()
        farthest, distance = _farthest(ring, start, end)
        if distance > tolerance:
            kept[farthest % len(ring)] = True
            arcs += [(start, farthest), (farthest, end)]


def _farthest(ring: np.ndarray, start: int, end: int) -> tuple[int, float]:
    """Return the corner between two (whose index may pass the ring's end) farthest from their line."""
    if end - start < 2:
        return start, 0.0
    chain = ring[np.arange(start + 1, end) % len(ring)] - ring[start % len(ring)]
    line = ring[end % len(ring)] - ring[start % len(ring)]
    square = max(int(line @ line), 1)
    along = np.clip(chain @ line / square, 0, 1)
    distances = _lengths(chain - along[:, None] * line)
    index = int(distances.argmax())
    return start + 1 + index, float(distances[index])


def _lengths(vectors: np.ndarray) -> np.ndarray:
    return np.hypot(vectors[:, 0], vectors[:, 1])


def _untangle(rings: list[np.ndarray], kept: list[np.ndarray], tolerance: float) -> None:
    """Keep more corners until no line that leaves some out is in conflict with another line."""
    for turn in count():
        corners = [np.flatnonzero(keep) for keep in kept]
        lines = _Lines([ring[index] for ring, index in zip(rings, corners, strict=True)])
        settled = True
        number = 0
        for ring, keep, index in zip(rings, kept, corners, strict=True):
            ends = np.append(index[1:], index[0] + len(ring))
            for which in np.flatnonzero(ends - index > 1).tolist():
                start, end = int(index[which]), int(ends[which])
                chain = np.arange(start, end + 1) % len(ring)
                if lines.conflict(number + which, ring[chain]):
                    settled = False
                    middle, _ = _farthest(ring, start, end)
                    keep[chain if turn >= _PATIENCE else middle % len(ring)] = True
                    _keep_far(ring, keep, [(start, middle), (middle, end)], tolerance)
            number += len(index)
        if settled:
            return


class _Lines:
    """All lines of all rings, to find those near a place: sorted by their top, in classes of height."""

    def __init__(self, rings: list[np.ndarray]) -> None:
        self._starts = np.concatenate(rings).astype(np.int64)
        self._ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings]).astype(np.int64)
        self._low = np.minimum(self._starts, self._ends)
        self._high = np.maximum(self._starts, self._ends)
        heights = self._high[:, 1] - self._low[:, 1]
        classes = np.ceil(np.log2(heights + 1) / 3).astype(int)
        self._classes = []
        for size in np.unique(classes):
            members = np.flatnonzero(classes == size)
            members = members[np.argsort(self._low[members, 1], kind="stable")]
            self._classes.append((members, self._low[members, 1], int(heights[members].max())))

    def conflict(self, line: int, chain: np.ndarray) -> bool:
        """Whether a line touches another, or has another's corner between it and those it replaces.

        chain: [N, 2], the line's start, the corners that it leaves out, and its end.
        """
        near = self._near(chain.min(axis=0), chain.max(axis=0))
        near = near[near != line]
        start, end = self._starts[line], self._ends[line]
        return bool(
            _touch(start, end, self._starts[near], self._ends[near]).any()
            or _inside(self._starts[near], chain.astype(np.int64)).any()
        )

    def _near(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Return the lines whose boxes touch the box from `low` to `high` (x, y)."""
        found = []
        for members, tops, tallest in self._classes:
            first, last = np.searchsorted(tops, [low[1] - tallest, high[1] + 1])
            some = members[first:last]
            found.append(some[(self._low[some] <= high).all(axis=1) & (self._high[some] >= low).all(axis=1)])
        return np.concatenate(found)


def _touch(p: np.ndarray, q: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Line p-q and lines u-v [N, 2] -> [N] bool: they share a point that is not an end of both. Exact."""
    line, lines = q - p, v - u
    at_u, at_v = _cross(line, u - p), _cross(line, v - p)
    at_p, at_q = _cross(lines, p - u), _cross(lines, q - u)
    apart = (np.maximum(p, q) < np.minimum(u, v)) | (np.minimum(p, q) > np.maximum(u, v))
    touch = (np.sign(at_u) * np.sign(at_v) <= 0) & (np.sign(at_p) * np.sign(at_q) <= 0) & ~apart.any(axis=1)
    same = {
        name: (a == b).all(axis=1) for name, a, b in (("pu", p, u), ("pv", p, v), ("qu", q, u), ("qv", q, v))
    }
    joined = same["pu"] | same["pv"] | same["qu"] | same["qv"]
    # Lines from one point share more than it only if they leave it the same way.
    turned = np.where(same["pu"] | same["qv"], 1, -1)
    parallel = (at_u == 0) & (at_v == 0) & ((lines @ line) * turned > 0)
    return np.where(joined, parallel, touch)


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _inside(points: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """[N, 2], [M, 2] -> [N] bool: by the even-odd rule; a corner of the ring's line is outside."""
    points = points[~((points == ring[0]).all(axis=1) | (points == ring[-1]).all(axis=1))]
    start, end = ring, np.roll(ring, -1, axis=0)
    x, y = points[:, :1], points[:, 1:]
    passes = (start[:, 1] <= y) != (end[:, 1] <= y)
    rise = end[:, 1] - start[:, 1]
    left = (x - start[:, 0]) * rise < (y - start[:, 1]) * (end[:, 0] - start[:, 0])
    return ((passes & (left == (rise > 0))).sum(axis=1) % 2) == 1
