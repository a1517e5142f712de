"""LIRA as an auto-annotation function of CVAT: a question for each label, masks or polygons for the task.

A single file for `cvat-cli task auto-annotate --function-file`. It asks a running `lira-edge serve` over
HTTP. README.md says how to use it.
"""

import base64
import io
import os
from collections.abc import Iterator
from typing import Any

import cvat_sdk.auto_annotation as cvataa
import numpy as np
import PIL.Image
import requests
from cvat_sdk import models
from cvat_sdk.masks import encode_mask
from requests.adapters import HTTPAdapter
from urllib3.util import Retry


def create(
    questions: str, url: str | None = None, tolerance: float = 1.0, timeout: float = 300
) -> "LiraFunction":
    """What cvat-cli calls with its `-p NAME=TYPE:VALUE`.

    questions: labels of the CVAT task with what is asked for each, "star=the orange star; fish=the fish"; a
    label without a question is asked as it stands. url: of lira-edge serve (default: the environment variable
    LIRA_URL, or http://127.0.0.1:8000). tolerance: pixels that a polygon may lie beside its mask. timeout:
    seconds.
    """
    asked = {}
    for part in filter(str.strip, questions.split(";")):
        label, _, question = part.partition("=")
        asked[label.strip()] = question.strip() or label.strip()
    if not asked:
        raise ValueError(f'questions is {questions!r}, expected "LABEL=QUESTION; LABEL=QUESTION"')
    url = url or os.environ.get("LIRA_URL", "http://127.0.0.1:8000")
    return LiraFunction(asked, url, tolerance, timeout)


class LiraFunction:
    """Follows cvat_sdk.auto_annotation.DetectionFunction."""

    def __init__(self, questions: dict[str, str], url: str, tolerance: float, timeout: float) -> None:
        self._questions = list(questions.values())
        self._spec = cvataa.DetectionFunctionSpec(
            labels=[cvataa.label_spec(label, i, type="mask") for i, label in enumerate(questions)]
        )
        self._url, self._tolerance, self._timeout = url, tolerance, timeout
        self._session = requests.Session()
        # An error ends the whole run of annotate_task: a full queue (503 with Retry-After) is waited for.
        waiting = Retry(total=20, allowed_methods=["POST"], raise_on_status=False)
        self._session.mount(url, HTTPAdapter(max_retries=waiting))
        if key := os.environ.get("LIRA_API_KEY"):
            self._session.headers["Authorization"] = f"Bearer {key}"

    @property
    def spec(self) -> cvataa.DetectionFunctionSpec:
        return self._spec

    def detect(
        self, context: cvataa.DetectionFunctionContext, image: PIL.Image.Image
    ) -> list[models.LabeledShapeRequest]:
        """Asks every question about the image. Raises RuntimeError with lira-edge's message."""
        picture = io.BytesIO()
        image.convert("RGB").save(picture, "PNG")  # without EXIF: shapes are in pixels as CVAT gives them
        png = base64.b64encode(picture.getvalue()).decode()
        threshold = context.conf_threshold or 0
        return [
            shape
            for label, question in enumerate(self._questions)
            for mask in self._segment(png, question, "polygons" if context.conv_mask_to_poly else "png")
            if mask["score"] >= threshold
            for shape in shapes(mask, label)
        ]

    def _segment(self, png: str, question: str, form: str) -> list[dict[str, Any]]:
        """The masks that answer one question. lira-edge encodes the picture for the first question only."""
        reply = self._session.post(
            f"{self._url}/v1/segment",
            json={"image": png, "text": question, "formats": [form], "tolerance": self._tolerance},
            timeout=self._timeout,
        )
        if not reply.ok:
            raise RuntimeError(f"{reply.url} answered {reply.status_code}: {reply.text}")
        return reply.json()["masks"]


def shapes(mask: dict[str, Any], label: int) -> Iterator[models.LabeledShapeRequest]:
    """A mask of lira-edge as CVAT's shapes: one mask, or a polygon for each part (holes are filled)."""
    if mask["box"] is None:  # there is no pixel in it
        return
    if "png" in mask:
        yield cvataa.mask(label, encode_mask(decode_png(mask["png"]), mask["box"]))
        return
    for polygon in mask["polygons"]:
        points = [value for point in polygon["exterior"] for value in point]
        yield cvataa.polygon(label, points)


def decode_png(data_uri: str) -> np.ndarray:
    """[H, W] bool of a mask as lira-edge sends it: a data URI, white is the object."""
    encoded = data_uri.partition(",")[2]
    with PIL.Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        return np.asarray(picture.convert("L")) > 127
