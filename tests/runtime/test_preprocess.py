from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from lira_engine.bundle.manifest import PixelSpec, RegionSpec, TileSpec
from lira_runtime import preprocess

TILE = TileSpec(size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), min_num=1, max_num=6, use_thumbnail=True)
PIXEL = PixelSpec(size=64, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), pad_color=(122, 116, 104))


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 7919 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("width", "height", "grid"),
    [(300, 300, (1, 1)), (600, 300, (2, 1)), (1, 50_000, (1, 6)), (50_000, 1, (6, 1)), (1, 1, (1, 1))],
)
def test_the_tile_grid_follows_the_aspect_ratio(width: int, height: int, grid: tuple[int, int]) -> None:
    assert preprocess.choose_grid(width, height, 1, 6, 448) == grid


def test_equally_close_grids_are_decided_by_the_pixel_count() -> None:
    assert preprocess.choose_grid(400, 400, 1, 4, 448) == (1, 1)
    assert preprocess.choose_grid(1000, 1000, 1, 4, 448) == (2, 2)


def test_without_a_grid_between_the_limits_there_is_one_tile() -> None:
    assert preprocess.choose_grid(100, 100, 3, 2, 448) == (1, 1)


def test_tiles_are_row_major_with_the_thumbnail_last() -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3).repeat(32, 0).repeat(32, 1) * 40)
    found = preprocess.tiles(image.convert("RGB"), TILE)
    assert found.shape == (7, 3, 32, 32)
    levels = np.rint((found[:6, 0, 16, 16] * 0.2 + 0.5) * 255)
    assert_array_equal(levels, np.arange(6) * 40)


def test_a_single_tile_has_no_thumbnail() -> None:
    assert preprocess.tiles(noise(20, 20), TILE).shape == (1, 3, 32, 32)


def test_a_bundle_may_want_no_thumbnail() -> None:
    image = noise(90, 60)
    found = preprocess.tiles(image, replace(TILE, use_thumbnail=False))
    assert_array_equal(found, preprocess.tiles(image, TILE)[:6])


def test_twelve_tiles_are_the_most() -> None:
    assert preprocess.with_tiles(TILE, max_tiles=12, min_tiles=12).max_num == 12


def test_rows_are_resized_before_columns() -> None:
    """Pillow 13 reverses the order for some sizes; the recorded arrays come from an older version."""
    image = noise(160, 120)
    for width, height in ((168, 112), (112, 168), (50, 200)):
        wide = image.resize((width, 120), Image.Resampling.BICUBIC)
        expected = wide.resize((width, height), Image.Resampling.BICUBIC)
        assert_array_equal(np.asarray(preprocess._resize(image, width, height)), np.asarray(expected))


@pytest.mark.parametrize(
    "size",
    [
        (90, 60),
        (60, 91),
        (77, 77),
        (600, 3),
        (3, 601),
        (1, 1),
        (40, 41),
        (41, 40),
        (300, 700),
        (13, 107),
        (3, 50),
        (1, 9),
        (5, 3001),
    ],
)
def test_padding_band_by_band_equals_padding_at_once(size: tuple[int, int]) -> None:
    image, side = noise(*size), max(size)
    square = Image.new("RGB", (side, side), PIXEL.pad_color)
    square.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    expected = np.asarray(preprocess._resize(square, PIXEL.size, PIXEL.size), dtype=np.float32) / 255
    expected = ((expected - np.array(PIXEL.mean)) / np.array(PIXEL.std)).transpose(2, 0, 1)
    found = preprocess.pixel_input(image, PIXEL)
    assert found.shape == (1, 3, PIXEL.size, PIXEL.size)
    assert_allclose(found[0], expected, rtol=0, atol=1e-6)  # rounding of float32


@pytest.mark.parametrize("size", [(1, 1), (1, 40_000), (40_000, 1), (20_000, 10)])
def test_thin_images_take_little_memory(size: tuple[int, int]) -> None:
    image = noise(*size)
    assert np.isfinite(preprocess.tiles(image, TILE)).all()
    assert np.isfinite(preprocess.pixel_input(image, PIXEL)).all()
    tracemalloc.start()
    logits = preprocess.mask_to_image(np.ones((64, 64), np.float32), *size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert logits.shape == (size[1], size[0])
    assert (logits == 1).all()
    assert peak < 40e6  # the whole square would take 1.6 GB and more


@pytest.mark.parametrize("size", [(160, 120), (96, 128), (128, 128), (33, 32), (7, 300), (20, 10)])
def test_mask_to_image_equals_the_unpadded_square(size: tuple[int, int]) -> None:
    width, height = size
    side = max(size)
    logits = np.random.default_rng(0).normal(0, 20, (32, 32)).astype(np.float32)
    centres = np.clip((np.arange(side) + 0.5) * 32 / side - 0.5, 0, 31)
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(32)))  # the tent, in float64
    square = weights @ logits @ weights.T
    top, left = (side - height) // 2, (side - width) // 2
    expected = square[top : top + height, left : left + width]
    found = preprocess.mask_to_image(logits, width, height)
    assert_allclose(found, expected, rtol=0, atol=1e-3)  # positions are float32, as torch's


def test_highlight_keeps_the_object_and_darkens_the_rest() -> None:
    image = Image.new("RGB", (10, 8), (200, 100, 50))
    mask = np.zeros((8, 10), dtype=bool)
    mask[2:5, 3] = mask[4, 3:7] = True
    crop, box = preprocess.highlight_crop(image, mask, RegionSpec(brightness=0.3))
    assert box == (3, 2, 7, 5)
    assert crop.size == (4, 3)
    assert crop.getpixel((0, 0)) == (200, 100, 50)
    assert crop.getpixel((3, 0)) == (60, 30, 15)
    assert image.getpixel((9, 7)) == (200, 100, 50)  # the image itself is untouched


def test_an_empty_mask_gives_the_whole_image_darkened() -> None:
    image = Image.new("RGB", (10, 8), (200, 100, 50))
    crop, box = preprocess.highlight_crop(image, np.zeros((8, 10), dtype=bool), RegionSpec(brightness=0.3))
    assert box == (0, 0, 10, 8)
    assert crop.getcolors() == [(80, (60, 30, 15))]


def test_a_mask_of_another_size_raises_value_error() -> None:
    with pytest.raises(ValueError, match="mask is"):
        preprocess.highlight_crop(noise(10, 8), np.zeros((10, 8), dtype=bool), RegionSpec(brightness=0.3))
