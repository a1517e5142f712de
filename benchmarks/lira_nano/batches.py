"""Render scenes into training batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lira_engine.bundle.manifest import RegionSpec
from lira_export.config import LiraConfig
from lira_runtime.preprocess import highlight_crop, pixel_input, region_tile, tiles

from .architecture import CLASSES
from .scenes import Scene, SceneObject, render_scene

SCENE_SIZE = 320
_CLASS_IDS = {name: i for i, name in enumerate(CLASSES)}
_REGION = RegionSpec(brightness=0.3)


@dataclass
class VisionBatch:
    """Images with their segments; the background is the last segment of each image."""

    scenes: list[Scene]
    pixels: Tensor  # [B, 3, P, P]
    tiles: Tensor  # [B, 3, S, S]
    masks: list[Tensor]  # per image [N, P/4, P/4], coverage in [0, 1]
    classes: list[Tensor]  # per image [N]


def vision_batch(seed: int, indices: Sequence[int], config: LiraConfig) -> VisionBatch:
    """Render the scenes ``indices`` of stream ``seed``."""
    scenes = [render_scene(seed, index, SCENE_SIZE) for index in indices]
    images = [Image.fromarray(scene.image) for scene in scenes]
    side = config.pixel.image_size // 4
    masks, classes = [], []
    for scene in scenes:
        things = np.stack([_coverage(item.mask, side) for item in scene.objects])
        background = np.clip(1 - things.sum(0, keepdims=True), 0, 1)
        masks.append(torch.from_numpy(np.concatenate([things, background])))
        ids = [_CLASS_IDS[item.name] for item in scene.objects]
        classes.append(torch.tensor([*ids, _CLASS_IDS["background"]]))
    return VisionBatch(
        scenes,
        torch.from_numpy(np.concatenate([pixel_input(image, config.pixels) for image in images])),
        torch.from_numpy(np.concatenate([tiles(image, config.tiles) for image in images])),
        masks,
        classes,
    )


def region(scene: Scene, item: SceneObject, config: LiraConfig, rng: np.random.Generator) -> np.ndarray:
    """Return an object's highlighted crop as a tile [1,3,S,S], by a mask as imperfect as a predicted one."""
    mask = item.mask.astype(np.uint8)
    if rng.random() < 0.7:
        # The runtime's masks come from the stride-4 grid: blur and shift by up to one cell of it.
        cell = mask.shape[0] // (config.pixel.image_size // 4)
        soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), cell * (0.3 + 0.5 * rng.random()))
        shift = np.eye(2, 3, dtype=np.float32)
        shift[:, 2] = (rng.random(2) - 0.5) * 2 * cell
        moved = cv2.warpAffine(soft, shift, mask.shape[::-1])
        mask = (moved > 0.3 + 0.4 * rng.random()).astype(np.uint8)
        if not mask.any():
            mask = item.mask.astype(np.uint8)
    crop, _ = highlight_crop(Image.fromarray(scene.image), mask.astype(bool), _REGION)
    return region_tile(crop, config.tiles)


def _coverage(mask: np.ndarray, side: int) -> np.ndarray:
    return cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
