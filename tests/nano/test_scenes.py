from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np
import pytest

from lira_nano import scenes
from lira_nano.scenes import Scene, render_scene
from lira_nano.sprites import EMOJI, FOLDER, sprite, sprite_names

COUNT = 60
EXPECTED_NAMES = [
    ["dog", "purple triangle", "ball"],
    ["ball", "green circle", "house", "cat"],
    ["flower", "cat"],
    ["green square", "green triangle", "ball", "purple square"],
]


@pytest.fixture(scope="module")
def some() -> list[Scene]:
    return [render_scene(11, index, 192) for index in range(COUNT)]


def test_seed_and_index_determine_the_scene() -> None:
    once, again = render_scene(4, 2, 160), render_scene(4, 2, 160)
    assert np.array_equal(once.image, again.image)
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(once.objects, again.objects, strict=True))
    assert not np.array_equal(once.image, render_scene(4, 3, 160).image)
    assert not np.array_equal(once.image, render_scene(5, 2, 160).image)


def test_scenes_are_those_of_the_published_figures() -> None:
    found = [[item.name for item in render_scene(0, index, 64).objects] for index in range(4)]
    assert found == EXPECTED_NAMES


def test_a_scene_is_the_same_at_every_size() -> None:
    for index in range(6):
        small, large = render_scene(7, index, 96), render_scene(7, index, 288)
        assert small.background == large.background
        for a, b in zip(small.objects, large.objects, strict=True):
            assert (a.name, a.center, a.diameter) == (b.name, b.center, b.diameter)
            sampled = b.mask[1::3, 1::3]
            assert (a.mask & sampled).sum() / (a.mask | sampled).sum() > 0.93
        blocks = large.image.reshape(96, 3, 96, 3, 3).mean((1, 3))
        assert np.abs(blocks - small.image).mean() < 4


def test_scenes_have_their_types_and_limits(some: list[Scene]) -> None:
    for scene in some:
        assert scene.image.shape == (192, 192, 3) and scene.image.dtype == np.uint8
        assert scene.background in scenes.BACKGROUNDS
        assert 2 <= len(scene.objects) <= 4
        assert len({item.name for item in scene.objects}) == len(scene.objects)
        xs = [item.center[0] for item in scene.objects]
        assert xs == sorted(xs)
        assert all(b - a >= scenes.MIN_DX for a, b in itertools.pairwise(xs))
        for item in scene.objects:
            assert item.name in scenes.all_names()
            assert (item.color is None) == (item.category in sprite_names())
            assert scenes.MIN_DIAMETER <= item.diameter <= scenes.MAX_DIAMETER
            assert item.mask.shape == (192, 192) and item.mask.dtype == bool


def test_boxes_are_tight_and_inside(some: list[Scene]) -> None:
    for item in (item for scene in some for item in scene.objects):
        left, top, right, bottom = item.box_xyxy
        assert 1 <= left < right <= 191 and 1 <= top < bottom <= 191
        assert item.mask[top:bottom, left:right].sum() == item.mask.sum()
        assert item.mask[top].any() and item.mask[bottom - 1].any()
        assert item.mask[:, left].any() and item.mask[:, right - 1].any()
        assert max(right - left, bottom - top) == pytest.approx(item.diameter * 192, rel=0.2, abs=2)


def test_masks_do_not_overlap_and_every_object_stays_visible(some: list[Scene]) -> None:
    for scene in some:
        assert sum(item.mask.astype(int) for item in scene.objects).max() == 1
        for item in scene.objects:
            whole = whole_area(item.category, item.color) * (item.diameter * 192) ** 2
            assert item.mask.sum() >= (scenes.MIN_VISIBLE - 0.01) * whole  # rasterised at another size


@lru_cache
def whole_area(category: str, color: str | None) -> float:
    """Return the area of an uncovered object of unit diameter."""
    placed = scenes._Placed(category, color, 1.0, 0.5, 0.5, 0.7, 0.0)
    _, _, alpha, _ = scenes._stamp(placed, 400)
    return float((alpha >= 0.5).sum()) / (0.7 * 400) ** 2


def test_masks_hold_the_colour_of_their_shape(some: list[Scene]) -> None:
    for scene in some:
        for item in scene.objects:
            if item.color is None:
                continue
            mean = scene.image[item.mask].mean(0)
            nearest = min(scenes.COLORS, key=lambda name: math.dist(mean, scenes.COLORS[name]))
            assert nearest == item.color


def test_all_objects_occur_and_colour_matters() -> None:
    drawn = [render_scene(12, index, 64) for index in range(300)]
    names = {item.name for scene in drawn for item in scene.objects}
    assert names == set(scenes.all_names())
    objects = [item for scene in drawn for item in scene.objects]
    assert 0.4 < sum(item.color is None for item in objects) / len(objects) < 0.6
    assert {scene.background for scene in drawn} == set(scenes.BACKGROUNDS)
    assert {len(scene.objects) for scene in drawn} == {2, 3, 4}
    twins = 0
    for scene in drawn:
        categories = [item.category for item in scene.objects]
        twins += len(set(categories)) < len(categories)
    assert twins > 0.15 * len(drawn)


def test_the_sheet_is_shipped_with_its_licence() -> None:
    assert sprite_names() == tuple(EMOJI)
    assert (FOLDER / "sprites.png").stat().st_size <= 300_000
    assert "SIL Open Font License" in (FOLDER / "sprites.LICENSE").read_text(encoding="utf-8")
    for name in sprite_names():
        pixels = sprite(name)
        assert pixels.shape == (128, 128, 4) and pixels.dtype == np.float32
        assert (pixels[..., :3] <= pixels[..., 3:] + 1e-6).all()
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert not border.any()
