"""LIRA as a Label Studio ML backend: brush masks for a project's labels, or for a text that someone types.

A single file for `label-studio-ml start` (2.x, with ModelResponse). It asks a running `lira-edge serve` over
HTTP. README.md says how to use it.
"""

import base64
import os
from pathlib import Path
from typing import Any

import requests
from label_studio_ml.model import LabelStudioMLBase
from label_studio_ml.response import ModelResponse


class Lira(LabelStudioMLBase):
    """Needs an <Image> and <BrushLabels> in the project's labeling interface; a <TextArea> lets people type.

    Each label is a question: its attribute `hint`, or its value.
    """

    def setup(self) -> None:
        """Called for every request; Label Studio shows the version beside predictions."""
        self.url = os.environ.get("LIRA_URL", "http://127.0.0.1:8000")
        key = os.environ.get("LIRA_API_KEY")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        reply = requests.get(f"{self.url}/v1/models", headers=self.headers, timeout=10)
        reply.raise_for_status()
        self.set("model_version", reply.json()["data"][0]["id"])

    def predict(
        self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **kwargs: Any
    ) -> ModelResponse:
        """One prediction for each task. Raises RuntimeError with lira-edge's message."""
        brush, image, variable = self.get_first_tag_occurence("BrushLabels", "Image")
        questions = self._typed(brush, context) or self._labels(brush)
        predictions = []
        for task in tasks:
            picture = Path(self.get_local_path(task["data"][variable], task_id=task.get("id"))).read_bytes()
            regions = [
                region(mask, label, brush, image)
                for label, question in questions.items()
                for mask in self._segment(picture, question)
            ]
            score = sum(one["score"] for one in regions) / max(len(regions), 1)
            predictions.append({"result": regions, "score": score})
        return ModelResponse(predictions=predictions, model_version=self.get("model_version"))

    def _labels(self, brush: str) -> dict[str, str]:
        """A question for each label."""
        tags = self.label_interface.get_tag(brush).labels_attrs
        return {label: tag.attr.get("hint", label) for label, tag in tags.items()}

    def _typed(self, brush: str, context: dict[str, Any] | None) -> dict[str, str]:
        """What someone typed into the <TextArea>, for the label that it names, or else the first one."""
        for result in (context or {}).get("result", []):
            if result["type"] == "textarea":
                text = " ".join(result["value"]["text"])
                labels = list(self._labels(brush))
                named = [label for label in labels if label.lower() in text.lower()]
                return {(named or labels)[0]: text}
        return {}

    def _segment(self, picture: bytes, question: str) -> list[dict[str, Any]]:
        """The masks that answer one question. lira-edge encodes the picture for the first question only."""
        reply = requests.post(
            f"{self.url}/v1/segment",
            json={
                "image": base64.b64encode(picture).decode(),
                "text": question,
                "formats": ["label_studio"],
            },
            headers=self.headers,
            timeout=300,
        )
        if not reply.ok:
            raise RuntimeError(f"{reply.url} answered {reply.status_code}: {reply.text}")
        return reply.json()["masks"]


def region(mask: dict[str, Any], label: str, brush: str, image: str) -> dict[str, Any]:
    """A region as the server made it, with the names that only the project knows."""
    item = mask["label_studio"]
    value = {**item["value"], "brushlabels": [label]}
    return {**item, "from_name": brush, "to_name": image, "value": value}
