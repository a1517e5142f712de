"""A reply as supervision.Detections, by the real package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco

sv = pytest.importorskip("supervision")


@pytest.fixture
def example(load_example: Callable[..., ModuleType]) -> ModuleType:
    return load_example("supervision/lira_supervision.py")


def test_masks_boxes_scores_and_labels(example: ModuleType, base_url: str, sample: Path) -> None:
    reply = example.segment(base_url, sample.read_bytes(), "the orange star")
    detections = example.to_detections(reply)
    height, width = cv2.imread(str(sample)).shape[:2]
    assert detections.mask.shape == (1, height, width)
    (mask,) = reply["masks"]
    assert (detections.mask[0] == coco.decode(mask["rle"]).astype(bool)).all()
    assert detections.xyxy.tolist() == [[float(value) for value in mask["box"]]]
    assert detections.confidence.tolist() == [pytest.approx(mask["score"])]
    assert detections["class_name"].tolist() == [mask["label"]]


def test_supervisions_own_operations_take_them(example: ModuleType) -> None:
    reply = {
        "image": {"width": 4, "height": 3},
        "masks": [
            one("a star", [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]], [2, 0, 4, 2]),
            one("a fish", [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], [0, 1, 1, 3]),
            one("a star", [[0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]], [2, 0, 4, 2]),
            one("a cat", [[0] * 4] * 3, None),
        ],
    }
    detections = example.to_detections(reply)
    assert detections["class_name"].tolist() == ["a star", "a fish", "a star"]
    assert detections.class_id.tolist() == [0, 1, 0]
    assert detections.area.tolist() == [4, 2, 3]
    assert len(detections.with_nms(threshold=0.5)) == 2


def one(label: str, rows: list[list[int]], box: list[int] | None) -> dict:
    rle = coco.encode(np.asfortranarray(rows, dtype=np.uint8))
    return {
        "label": label,
        "score": 0.75,
        "box": box,
        "rle": {"size": rle["size"], "counts": rle["counts"].decode()},
    }


def test_no_mask_is_no_detection(example: ModuleType) -> None:
    assert len(example.to_detections({"image": {"width": 4, "height": 3}, "masks": []})) == 0


def test_it_draws(example: ModuleType, base_url: str, sample: Path, tmp_path: Path) -> None:
    out = tmp_path / "annotated.png"
    example.main(base_url, str(sample), "the orange star", str(out))
    picture, drawn = cv2.imread(str(sample)), cv2.imread(str(out))
    changed = (picture != drawn).any(axis=2)
    detections = example.to_detections(example.segment(base_url, sample.read_bytes(), "the orange star"))
    assert changed[detections.mask[0]].mean() > 0.9
    assert not changed.all()
