"""Polygons of masks, against pycocotools, OpenCV and the rules of simple rings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from pycocotools import mask as coco

from lira_serve.mask_formats import Polygon, mask_to_polygons, polygons_to_mask
from lira_serve.mask_formats.outlines import trace
from lira_serve.mask_formats.simplify import MOST_CORNERS, simplify

TOLERANCES = (0.5, 1.0, 2.0, 5.0)


def smooth(rng: np.random.Generator, height: int, width: int, scale: float) -> np.ndarray:
    noise = cv2.GaussianBlur(rng.random((height, width), dtype=np.float32), (0, 0), scale)
    return noise > np.median(noise)


def rings_in_rings(rng: np.random.Generator) -> np.ndarray:
    """Circles in circles, not quite round one centre, cut by thin lines."""
    mask = np.zeros((110, 130), np.uint8)
    for radius in range(50, 3, -4):
        x, y = rng.integers(-1, 2, 2).tolist()
        cv2.circle(mask, (65 + x, 55 + y), radius, radius // 4 % 2, -1)
    for _ in range(4):
        start, end = rng.integers(0, 110, (2, 2)).tolist()
        cv2.line(mask, start, end, int(rng.integers(2)), 1)
    return mask.astype(bool)


def drawn(text: str) -> np.ndarray:
    return np.array([[sign == "#" for sign in line] for line in text.split()])


def masks() -> Iterator[np.ndarray]:
    rng = np.random.default_rng(15)
    for shape in ((1, 1), (1, 9), (9, 1), (6, 5)):
        yield np.zeros(shape, bool)
        yield np.ones(shape, bool)
        yield from (rng.random(shape) < 0.5 for _ in range(10))
    for share in (0.1, 0.4, 0.6, 0.9):
        yield from (rng.random((13, 17)) < share for _ in range(4))
        yield rng.random((60, 41)) < share
    for scale in (1.5, 3, 8):
        yield from (smooth(rng, 90, 120, scale) for _ in range(2))
    yield from (rings_in_rings(rng) for _ in range(4))
    yield np.eye(30, 40, dtype=bool)
    yield np.eye(30, dtype=bool) | np.eye(30, dtype=bool)[::-1]
    yield np.asfortranarray(smooth(rng, 50, 60, 4))[::2, ::-1]


every_mask = pytest.mark.parametrize("mask", list(masks()), ids=lambda mask: "x".join(map(str, mask.shape)))


def rings_of(polygons: Sequence[Polygon]) -> list[np.ndarray]:
    return [ring for polygon in polygons for ring in (polygon.exterior, *polygon.holes)]


def traced(mask: np.ndarray) -> list[np.ndarray]:
    outlines = trace(np.ascontiguousarray(mask))
    return [ring for outline in outlines for ring in (outline.exterior, *outline.holes)]


def shoelace(ring: np.ndarray) -> float:
    return sum(
        (x0 * y1 - x1 * y0) / 2
        for (x0, y0), (x1, y1) in zip(ring.tolist(), np.roll(ring, -1, axis=0).tolist(), strict=True)
    )


# Exact


@every_mask
def test_exact_polygons_give_the_mask_back(mask: np.ndarray) -> None:
    polygons = mask_to_polygons(mask, 0)
    assert_array_equal(polygons_to_mask(polygons, *mask.shape), mask)
    assert sum(polygon.area for polygon in polygons) == mask.sum()


@every_mask
def test_pycocotools_fills_exact_polygons_to_the_same_mask(mask: np.ndarray) -> None:
    filled = np.zeros(mask.shape, int)
    for polygon in mask_to_polygons(mask, 0):
        for ring, sign in ((polygon.exterior, 1), *((hole, -1) for hole in polygon.holes)):
            (runs,) = coco.frPyObjects([ring.ravel().astype(float).tolist()], *mask.shape)
            filled += sign * coco.decode(runs).astype(int)
    assert_array_equal(filled, mask)


@every_mask
def test_there_is_a_polygon_for_each_part_and_a_hole_for_each_gap(mask: np.ndarray) -> None:
    polygons = mask_to_polygons(mask, 0)
    parts, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=4)
    assert len(polygons) == parts - 1
    gaps = 0
    for part in range(1, parts):
        others = np.pad(labels != part, 1, constant_values=True).astype(np.uint8)
        gaps += (
            cv2.connectedComponents(others, connectivity=4)[0] - 2
        )  # less the part itself and what is around
    assert sum(len(polygon.holes) for polygon in polygons) == gaps


@every_mask
def test_rings_pass_no_corner_twice_and_run_the_way_that_is_documented(mask: np.ndarray) -> None:
    for polygon in mask_to_polygons(mask, 0):
        for ring in (polygon.exterior, *polygon.holes):
            assert ring.dtype == np.int32
            assert len({tuple(corner) for corner in ring.tolist()}) == len(ring) >= 4
            steps = np.roll(ring, -1, axis=0) - ring
            assert ((steps != 0).sum(axis=1) == 1).all()  # along x or y
            assert ((steps != 0) != (np.roll(steps, -1, axis=0) != 0)).all()  # in turn
        assert shoelace(polygon.exterior) > 0
        assert all(shoelace(hole) < 0 for hole in polygon.holes)


def test_one_pixel_is_the_square_of_its_edges() -> None:
    mask = np.zeros((5, 8), bool)
    mask[2, 6] = True
    (polygon,) = mask_to_polygons(mask)
    assert {tuple(corner) for corner in polygon.exterior.tolist()} == {(6, 2), (7, 2), (7, 3), (6, 3)}
    assert polygon.as_dict() == {"exterior": polygon.exterior.tolist(), "holes": []}


def test_pixels_that_touch_at_a_corner_are_two_polygons() -> None:
    assert len(mask_to_polygons(drawn("#. .#"), 0)) == 2


def test_a_notch_that_closes_at_a_corner_is_a_hole() -> None:
    closed = drawn("#### #..# #.#. ###.")
    (polygon,) = mask_to_polygons(closed, 0)
    assert len(polygon.holes) == 1
    assert polygon.area == closed.sum()


def test_an_island_in_a_hole_is_a_polygon_of_its_own() -> None:
    mask = drawn("####### #.....# #.###.# #.#.#.# #.###.# #.....# #######")
    ring, island = mask_to_polygons(mask, 0)
    assert (ring.area, len(ring.holes)) == (24, 1)
    assert (island.area, len(island.holes)) == (8, 1)


def test_the_largest_polygon_comes_first() -> None:
    polygons = mask_to_polygons(np.random.default_rng(1).random((40, 40)) < 0.5)
    areas = [shoelace(polygon.exterior) for polygon in polygons]
    assert areas == sorted(areas, reverse=True)


# Simplified


def far(rings: list[np.ndarray], others: list[np.ndarray]) -> float:
    """The farthest that a point of a ring (corners, and points between them) lies from its other ring."""
    worst = 0.0
    for ring, other in zip(rings, others, strict=True):
        start, end = other.astype(float), np.roll(other, -1, axis=0).astype(float)
        share = np.linspace(0, 1, 9)[:, None, None]
        points = (ring * (1 - share) + np.roll(ring, -1, axis=0) * share).reshape(-1, 1, 2)
        line = end - start
        along = np.clip(((points - start) * line).sum(-1) / (line**2).sum(-1), 0, 1)
        worst = max(
            worst, np.linalg.norm(points - start - along[..., None] * line, axis=-1).min(axis=1).max()
        )
    return worst


@every_mask
@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_no_point_moves_more_than_the_tolerance(mask: np.ndarray, tolerance: float) -> None:
    exact = traced(mask)
    simple = simplify(exact, tolerance)
    assert far(exact, simple) <= tolerance + 1e-9
    assert far(simple, exact) <= tolerance + 1e-9


def cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def conflicts(rings: list[np.ndarray]) -> int:
    """How many pairs of lines cross, or touch where not both have a corner."""
    start = np.concatenate(rings).astype(np.int64)
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings]).astype(np.int64)
    found = 0
    for p, q in zip(start, end, strict=True):
        line = q - p
        side = np.sign([cross(line, point - p) for point in (start, end)])
        back = np.sign([cross(end - start, point - start) for point in (p, q)])
        found += int(((side[0] * side[1] < 0) & (back[0] * back[1] < 0)).sum())
        between = ((start - p) @ line > 0) & ((start - q) @ line < 0)
        found += int(((side[0] == 0) & between).sum())  # a corner on the line
    return found


@every_mask
@pytest.mark.parametrize("tolerance", TOLERANCES)
def test_simplified_rings_neither_cross_nor_change_sides(mask: np.ndarray, tolerance: float) -> None:
    polygons, exact = mask_to_polygons(mask, tolerance), mask_to_polygons(mask, 0)
    assert sorted(len(polygon.holes) for polygon in polygons) == sorted(
        len(polygon.holes) for polygon in exact
    )
    if not polygons:
        return
    assert conflicts(rings_of(polygons)) == 0
    scale = 3
    depth = np.zeros((scale * mask.shape[0], scale * mask.shape[1]), int)
    for polygon in polygons:
        assert shoelace(polygon.exterior) > 0
        larger = Polygon(scale * polygon.exterior, tuple(scale * hole for hole in polygon.holes))
        depth += polygons_to_mask([larger], *depth.shape)
        for hole in polygon.holes:
            assert shoelace(hole) < 0
            corners = hole.astype(float).tolist()
            assert all(cv2.pointPolygonTest(polygon.exterior, corner, False) >= 0 for corner in corners)
    assert depth.max() == 1  # no polygon lies on another


@every_mask
def test_rings_keep_most_of_their_area(mask: np.ndarray) -> None:
    exact = traced(mask)
    for before, after in zip(exact, simplify(exact, 5.0), strict=True):
        assert 0.75 <= shoelace(after) / shoelace(before) <= 1.25


def test_a_smooth_shape_needs_few_corners() -> None:
    disc = np.hypot(*(np.mgrid[:400, :400] - 200)) < 150
    (exact,), (simple,) = mask_to_polygons(disc, 0), mask_to_polygons(disc, 1.5)
    assert len(exact.exterior) > 300
    assert len(simple.exterior) < 40
    assert (polygons_to_mask([simple], 400, 400) != disc).sum() < 0.01 * disc.sum()


def test_an_island_in_a_notch_stays_outside() -> None:
    """Without a look at its neighbours, the notch is bridged over the island."""
    mask = np.ones((40, 60), bool)
    mask[0:4, 25:34] = False
    mask[1:3, 28:31] = True
    body, island = mask_to_polygons(mask, 5.0)
    assert not (polygons_to_mask([body], 40, 60) & polygons_to_mask([island], 40, 60)).any()
    assert (polygons_to_mask([island], 40, 60) == np.pad(np.ones((2, 3), bool), ((1, 37), (28, 29)))).all()


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
def test_a_wrong_tolerance_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match="expected pixels"):
        mask_to_polygons(np.ones((2, 2), bool), tolerance)


def test_a_mask_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \[H, W\]"):
        mask_to_polygons(np.ones((2, 2, 1), bool))


# Filling


def test_pixels_are_filled_whose_centre_lies_inside() -> None:
    """As OpenCV says of each centre."""
    rng = np.random.default_rng(3)
    angles = np.sort(rng.random(12)) * 2 * np.pi
    ring = np.stack([20 + 15 * np.cos(angles), 16 + 12 * np.sin(angles)], axis=1).astype(np.float32)
    expected = [
        [cv2.pointPolygonTest(ring, (x + 0.5, y + 0.5), False) > 0 for x in range(40)] for y in range(30)
    ]
    assert np.any(expected)
    for turned in (ring, ring[::-1]):
        assert_array_equal(polygons_to_mask([Polygon(turned)], 30, 40), expected)


def test_a_polygon_may_leave_the_picture() -> None:
    square = np.array([[-5, -5], [3, -5], [3, 99], [-5, 99]])
    expected = np.zeros((4, 6), bool)
    expected[:, :3] = True
    assert_array_equal(polygons_to_mask([Polygon(square)], 4, 6), expected)


def test_overlapping_polygons_are_united() -> None:
    square = np.array([[1, 1], [4, 1], [4, 4], [1, 4]])
    ring = Polygon(square, (np.array([[2, 2], [3, 2], [3, 3], [2, 3]]),))
    assert polygons_to_mask([ring], 5, 5).sum() == 8
    assert polygons_to_mask([ring, Polygon(square)], 5, 5).sum() == 9


# Large masks


def large(kind: str) -> np.ndarray:
    rng = np.random.default_rng(7)
    if kind == "noise":
        return rng.random((600, 800)) < 0.4
    return cv2.resize(smooth(rng, 300, 400, 6).astype(np.uint8), (4000, 3000)) > 0


@pytest.mark.parametrize("kind", ["noise", "shapes"])
def test_large_masks_come_back(kind: str) -> None:
    mask = large(kind)
    assert_array_equal(polygons_to_mask(mask_to_polygons(mask, 0), *mask.shape), mask)


def test_noise_stays_exact() -> None:
    """It has no outline to simplify, and would take minutes."""
    mask = large("noise")
    polygons = mask_to_polygons(mask, 2.0)
    assert sum(map(len, rings_of(polygons))) > MOST_CORNERS
    assert_array_equal(polygons_to_mask(polygons, *mask.shape), mask)
