"""A reply of lira-edge as supervision.Detections, and a picture with masks, boxes and labels drawn.

`python lira_supervision.py http://127.0.0.1:8000 picture.png "the orange star" annotated.png`
"""

import base64
import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import requests
import supervision as sv


def segment(url: str, picture: bytes, text: str, task: str = "refseg") -> dict[str, Any]:
    """POST /v1/segment. Raises RuntimeError with lira-edge's message."""
    key = os.environ.get("LIRA_API_KEY")
    reply = requests.post(
        f"{url}/v1/segment",
        json={"image": base64.b64encode(picture).decode(), "text": text, "task": task, "formats": ["rle"]},
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=300,
    )
    if not reply.ok:
        raise RuntimeError(f"{reply.url} answered {reply.status_code}: {reply.text}")
    return reply.json()


def to_detections(reply: dict[str, Any]) -> sv.Detections:
    """Masks [N, H, W] bool, boxes [N, 4] float32 (x0, y0, x1, y1), confidence, and labels as class names.

    reply: of POST /v1/segment with the format "rle". Each label is a class. A mask without a pixel has no box
    and is left out.
    """
    masks = [mask for mask in reply["masks"] if mask["box"] is not None]
    if not masks:
        return sv.Detections.empty()
    size = (reply["image"]["width"], reply["image"]["height"])
    labels = [mask["label"] for mask in masks]
    classes = list(dict.fromkeys(labels))
    return sv.Detections(
        xyxy=np.array([mask["box"] for mask in masks], dtype=np.float32),
        mask=np.stack([sv.rle_to_mask(mask["rle"]["counts"], size) for mask in masks]),
        confidence=np.array([mask["score"] for mask in masks], dtype=np.float32),
        class_id=np.array([classes.index(label) for label in labels]),
        data={"class_name": np.array(labels)},
    )


def annotate(picture: np.ndarray, detections: sv.Detections) -> np.ndarray:
    """The picture [H, W, 3] uint8 BGR with what was found."""
    drawn = sv.MaskAnnotator().annotate(picture.copy(), detections)
    drawn = sv.BoxAnnotator().annotate(drawn, detections)
    return sv.LabelAnnotator().annotate(drawn, detections)


def main(url: str, picture: str, text: str, out: str) -> None:
    data = Path(picture).read_bytes()
    detections = to_detections(segment(url, data, text))
    print(detections)
    # IMREAD_COLOR turns the picture upright by its EXIF orientation, as lira-edge does.
    cv2.imwrite(out, annotate(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), detections))


if __name__ == "__main__":
    main(*sys.argv[1:])
