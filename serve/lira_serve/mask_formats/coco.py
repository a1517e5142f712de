"""Masks as annotations of a COCO data set."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco

from lira_runtime import rle


def mask_to_coco(mask: np.ndarray, *, annotation_id: int, image_id: int, category_id: int) -> dict[str, Any]:
    """[H, W] bool -> an entry of a COCO file's "annotations", ready for JSON.

    "segmentation" is compressed run-length encoding, "bbox" x, y, width, height and "area" the number of
    pixels. Raises ValueError for another shape.
    """
    runs = rle.encode(mask)
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": runs,
        "bbox": [float(side) for side in coco.toBbox(runs)],
        "area": int(coco.area(runs)),
        "iscrowd": 0,
    }
