"""LIRA as a model of X-AnyLabeling-Server: a text goes in, polygons come out.

A single file for the server's folder app/models, which imports every module there. It asks a running
`lira-edge serve` over HTTP, so that the annotation server needs none of LIRA's packages. README.md says how
to use it.
"""

import base64
import os
from typing import Any

import cv2
import numpy as np
import requests
from app.core.registry import register_model
from app.models import BaseModel, parse_prompts
from app.schemas.shape import Shape


@register_model("lira")
class Lira(BaseModel):
    """Two tasks: masks of the things that a text names, and a description of the picture with masks."""

    def load(self) -> None:
        """Raises if lira-edge is not there or not warm, or refuses the key: then the model is not listed."""
        self.url = os.environ.get("LIRA_URL") or self.params["url"]
        key = os.environ.get("LIRA_API_KEY")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        for path in ("/health/ready", "/v1/models"):
            requests.get(self.url + path, headers=self.headers, timeout=10).raise_for_status()

    def get_metadata(self) -> dict[str, Any]:
        metadata = super().get_metadata()
        metadata["available_tasks"] = [
            {
                "id": "refseg",
                "name": "Segment by text",
                "description": "One mask for each text; separate texts by commas",
                "batch_processing_mode": "text_prompt",
                "active_widgets": {
                    "edit_text": {"placeholder": "the orange star, the fish"},
                    "button_send": {},
                    "input_conf": {},
                    "edit_conf": {},
                    "toggle_preserve_existing_annotations": {},
                },
            },
            {
                "id": "gcg",
                "name": "Describe with masks",
                "description": "A description of the picture, and a mask for each of its phrases",
                "batch_processing_mode": "default",
                "active_widgets": {
                    "button_run": {},
                    "input_conf": {},
                    "edit_conf": {},
                    "toggle_preserve_existing_annotations": {},
                },
            },
        ]
        return metadata

    def predict(self, image: np.ndarray, params: dict[str, Any]) -> dict[str, Any]:
        """image: [H, W, 3] uint8, BGR. params: the client's `current_task`, `text_prompt`, `conf_threshold`.

        Returns shapes in pixels of the image, and gcg's description. Raises RuntimeError with lira-edge's
        message.
        """
        png = base64.b64encode(cv2.imencode(".png", image)[1]).decode()
        threshold = params.get("conf_threshold", self.params.get("conf_threshold", 0.0))
        if params.get("current_task", "refseg") == "gcg":
            reply = self._segment(png, task="gcg")
            return {"shapes": shapes(reply["masks"], threshold), "description": reply["text"]}
        found: list[Shape] = []
        for text in parse_prompts(params.get("text_prompt", "")):
            # lira-edge keeps what it saw of the picture: only the first text pays for the encoders.
            masks = self._segment(png, task="refseg", text=text)["masks"]
            found += shapes(masks, threshold, label=text, groups_from=len(found) + 1)
        return {"shapes": found, "description": ""}

    def unload(self) -> None:
        """The engines belong to lira-edge."""

    def _segment(self, png: str, **question: str) -> dict[str, Any]:
        reply = requests.post(
            f"{self.url}/v1/segment",
            json={
                "image": png,
                "formats": ["polygons"],
                "tolerance": self.params.get("tolerance", 1.0),
                **question,
            },
            headers=self.headers,
            timeout=self.params.get("timeout", 300),
        )
        if not reply.ok:
            raise RuntimeError(f"{reply.url} answered {reply.status_code}: {reply.text}")
        return reply.json()


def shapes(
    masks: list[dict[str, Any]], threshold: float, label: str | None = None, groups_from: int = 1
) -> list[Shape]:
    """Polygons of the masks with at least this score. Parts of one mask share a group.

    X-AnyLabeling's polygons have no holes: a hole is filled. Their last point repeats the first, as in the
    server's other models.
    """
    found = []
    for group, mask in enumerate(masks, start=groups_from):
        if mask["score"] < threshold:
            continue
        for polygon in mask["polygons"]:
            ring = polygon["exterior"]
            found.append(
                Shape(
                    label=label or mask["label"],
                    shape_type="polygon",
                    points=[*ring, ring[0]],
                    score=mask["score"],
                    group_id=group if len(mask["polygons"]) > 1 else None,
                )
            )
    return found
