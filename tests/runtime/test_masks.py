"""Masks of large images, computed in bands of rows."""

from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from lira_engine.bundle.manifest import RegionSpec, TileSpec
from lira_runtime import masks, preprocess, rle
from lira_runtime.masks import Mask

TILE = TileSpec(size=32, min_num=1, max_num=4, use_thumbnail=True, mean=(0.5,) * 3, std=(0.25,) * 3)
LOGITS = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
SIZES = [(60, 40), (40, 61), (200, 3), (1, 90)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("pixels", [1, 130, 1000])
def test_bands_equal_the_mask_computed_at_once(
    size: tuple[int, int], pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image, region = Image.fromarray(noise), RegionSpec(brightness=0.3)
    whole = Mask(lambda: LOGITS, *size)
    logits, score = whole.logits, whole.score
    inside = logits[logits > 0].astype(np.float64)
    assert score == np.mean(1 / (1 + np.exp(-inside)))  # a small mask is one band
    crop, box = preprocess.highlight_crop(image, whole.binary, region)
    tile = preprocess.region_tile(crop, TILE)

    monkeypatch.setattr(preprocess, "_BAND_PIXELS", pixels)
    banded = Mask(lambda: LOGITS, *size)
    assert_array_equal(banded.logits, logits)
    assert_array_equal(banded.binary, logits > 0)
    assert banded.score == pytest.approx(score, rel=1e-14)
    found, found_box = preprocess.highlighted_tile(image, banded.binary, region, TILE)
    assert_array_equal(found, tile)
    assert found_box == box == banded.box_xyxy


def test_the_tile_of_an_empty_mask_is_the_whole_image_darkened() -> None:
    image, region = Image.new("RGB", (50, 30), (200, 100, 50)), RegionSpec(brightness=0.3)
    nothing = np.zeros((30, 50), bool)
    crop, box = preprocess.highlight_crop(image, nothing, region)
    found, found_box = preprocess.highlighted_tile(image, nothing, region, TILE)
    assert found_box == box == (0, 0, 50, 30)
    assert_array_equal(found, preprocess.region_tile(crop, TILE))


def test_a_logit_of_zero_is_outside() -> None:
    """As upstream: sigmoid(logit) > 0.5."""
    logits = np.zeros((4, 4), np.float32)
    mask = Mask(lambda: logits, 4, 4)
    assert not mask.binary.any() and (mask.score, mask.box_xyxy) == (0.0, None)
    logits[1, 2] = np.finfo(np.float32).tiny
    assert Mask(lambda: logits, 4, 4).box_xyxy == (2, 1, 3, 2)


@pytest.mark.parametrize("size", SIZES)
def test_a_mask_kept_as_bits_equals_the_mask(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Mask(lambda: LOGITS, *size)
    monkeypatch.setattr(masks, "_KEPT_AS_IT_IS", 0)
    packed = Mask(lambda: LOGITS, *size)
    assert packed.binary.dtype == bool
    assert_array_equal(packed.binary, plain.binary)
    assert (packed.score, packed.box_xyxy) == (plain.score, plain.box_xyxy)


@pytest.mark.parametrize("size", SIZES)
def test_runs_are_those_of_the_mask_and_count_as_bytes(size: tuple[int, int]) -> None:
    mask = Mask(lambda: LOGITS, *size)
    assert mask.nbytes == 0
    binary = mask.binary
    assert mask.nbytes == LOGITS.nbytes + binary.nbytes
    assert_array_equal(rle.decode(mask.rle), binary)
    assert mask.nbytes == LOGITS.nbytes + binary.nbytes + len(mask.counts)


def test_two_threads_decode_a_mask_once() -> None:
    """A pass cannot run twice: its inputs are gone."""
    entered, twice, decoded = threading.Event(), threading.Event(), []

    def decode() -> np.ndarray:
        (twice if decoded else entered).set()
        decoded.append(threading.get_ident())
        twice.wait(0.2)
        return LOGITS

    mask = Mask(decode, 8, 8)
    threads = [threading.Thread(target=lambda: mask.decoder_logits) for _ in range(2)]
    threads[0].start()
    assert entered.wait(30)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 1


def test_a_large_mask_takes_little_memory() -> None:
    width, height = 12_000, 2_000
    mask = Mask(lambda: np.abs(LOGITS), width, height)
    tracemalloc.start()
    try:
        assert mask.score > 0.5 and mask.box_xyxy == (0, 0, width, height)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < width * height / 4
    assert peak < 200e6  # at once, each step of the score takes 190 MB of float64
