"""Preprocessing against the recorded arrays of the authors' code. Sizes and counts come from the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from lira_engine.bundle.manifest import PixelSpec, RegionSpec, TileSpec
from lira_runtime.images import open_image
from lira_runtime.preprocess import (
    choose_grid,
    highlight_crop,
    mask_to_image,
    pixel_input,
    region_tile,
    tiles,
)

ATOL = 1e-5  # the golden README's tolerance; float32 of values in -2.2..2.7. Resized pixels are equal.
LOGIT_ATOL = 1e-3  # mask logits span tens
HIGHLIGHT = RegionSpec(brightness=0.3)  # upstream's ImageEnhance factor


@pytest.fixture(scope="module")
def pixel_spec(golden_config: dict[str, Any]) -> PixelSpec:
    constants = golden_config["preprocessing"]["pixel"]
    return PixelSpec(
        constants["size"],
        tuple(constants["image_mean"]),
        tuple(constants["image_std"]),
        tuple(constants["pad_color"]),
    )


def tile_spec(config: dict[str, Any], *, max_num: int) -> TileSpec:
    """The tile spec of the recording scripts' dynamic_preprocess: min_num 1, with a thumbnail."""
    constants = config["preprocessing"]["tile"]
    mean, std = tuple(constants["mean"]), tuple(constants["std"])
    return TileSpec(constants["size"], mean, std, min_num=1, max_num=max_num, use_thumbnail=True)


def traces(golden: Path) -> list[tuple[Path, Any, Any]]:
    """Yield (image path, opened image, arrays) of each recorded answer."""
    paths = sorted((golden / "e2e").glob("trace_*.npz"))
    assert paths
    images = [path.with_name(path.stem.replace("trace", "image") + ".png") for path in paths]
    return [(image, open_image(image), np.load(path)) for image, path in zip(images, paths, strict=True)]


def test_golden_tile_grids(golden: Path) -> None:
    cases = json.loads((golden / "tiling_cases.json").read_text())
    assert cases
    for case in cases:
        grid = choose_grid(case["w"], case["h"], case["min_num"], case["max_num"], case["image_size"])
        assert grid == (case["grid_cols"], case["grid_rows"]), case
        count = grid[0] * grid[1]
        assert count + (case["use_thumbnail"] and count > 1) == case["n_tiles"], case


def test_golden_tiles(golden: Path, golden_config: dict[str, Any]) -> None:
    recorded = np.load(golden / "components/tiles.npz")
    assert recorded.files
    for name in recorded.files:  # tiles_A_max6
        _, letter, limit = name.split("_")
        spec = tile_spec(golden_config, max_num=int(limit.removeprefix("max")))
        found = tiles(open_image(golden / f"components/image_{letter}.png"), spec)
        assert found.dtype == np.float32
        assert_allclose(found, recorded[name], rtol=0, atol=ATOL, err_msg=name)


def test_golden_pixel_input_of_component_images(golden: Path, pixel_spec: PixelSpec) -> None:
    recorded = np.load(golden / "components/convnext.npz")["images_AB"]
    found = [
        pixel_input(open_image(golden / f"components/image_{letter}.png"), pixel_spec) for letter in "AB"
    ]
    assert_allclose(np.concatenate(found), recorded, rtol=0, atol=ATOL)


def test_golden_crops(golden: Path, golden_config: dict[str, Any]) -> None:
    """The cases include an empty mask, a single pixel, a whole image and a thin object."""
    recorded = np.load(golden / "components/crop_cases.npz")
    image = open_image(golden / "components/image_A.png")
    spec = tile_spec(golden_config, max_num=1)
    cases = [name.removeprefix("mask_") for name in recorded.files if name.startswith("mask_")]
    assert cases
    for case in cases:
        crop, _ = highlight_crop(image, recorded[f"mask_{case}"] > 0, HIGHLIGHT)
        assert_array_equal(np.asarray(crop), recorded[f"crop_{case}"], err_msg=case)
        found = region_tile(crop, spec)
        assert_allclose(found, recorded[f"tile_{case}"], rtol=0, atol=ATOL, err_msg=case)


def test_golden_trace_inputs(golden: Path, golden_config: dict[str, Any], pixel_spec: PixelSpec) -> None:
    spec = tile_spec(golden_config, max_num=golden_config["max_dynamic_patch"])
    for path, image, recorded in traces(golden):
        assert image.size == tuple(recorded["ori_size_wh"])
        assert_allclose(tiles(image, spec), recorded["tiles"], rtol=0, atol=ATOL, err_msg=path.name)
        found = pixel_input(image, pixel_spec)
        assert_allclose(found[0], recorded["pixel_values"], rtol=0, atol=ATOL, err_msg=path.name)


def test_golden_trace_masks(golden: Path) -> None:
    """Logits at the image's size within tolerance, every binary pixel exact."""
    for path, image, recorded in traces(golden):
        for seg in range(int(recorded["n_seg"])):
            found = mask_to_image(recorded[f"seg{seg}_mask_logits_s4"][0, 0], *image.size)
            label = f"{path.name} seg {seg}"
            assert found.dtype == np.float32
            expected = recorded[f"seg{seg}_mask_logits_orig"][0]
            assert_allclose(found, expected, rtol=0, atol=LOGIT_ATOL, err_msg=label)
            assert_array_equal(found > 0, recorded[f"seg{seg}_mask"][0] > 0, err_msg=label)
            picture = open_image(path.with_name(f"{path.stem.replace('image', 'mask')}_seg{seg}.png"))
            assert_array_equal(found > 0, np.asarray(picture)[..., 0] > 0, err_msg=label)


def test_golden_trace_regions(golden: Path, golden_config: dict[str, Any]) -> None:
    """Each <image_id> takes the latest mask: same box, same crop, same tile."""
    spec = tile_spec(golden_config, max_num=1)
    for path, image, recorded in traces(golden):
        seg_steps = [int(recorded[f"seg{seg}_step"]) for seg in range(int(recorded["n_seg"]))]
        for index in range(int(recorded["n_crop"])):
            label = f"{path.name} crop {index}"
            latest = max(seg for seg, step in enumerate(seg_steps) if step <= recorded[f"crop{index}_step"])
            mask = recorded[f"seg{latest}_mask"][0] > 0
            crop, box = highlight_crop(image, mask, HIGHLIGHT)
            assert box == tuple(recorded[f"crop{index}_bbox_xyxy"]), label
            picture = open_image(path.with_name(f"{path.stem.replace('image', 'crop')}_{index}.png"))
            assert_array_equal(np.asarray(crop), np.asarray(picture), err_msg=label)
            tile = region_tile(crop, spec)
            assert_allclose(tile, recorded[f"crop{index}_tile"], rtol=0, atol=ATOL, err_msg=label)
