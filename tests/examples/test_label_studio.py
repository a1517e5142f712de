"""The Label Studio ML backend: by a stand-in for its base class, and by the real backend where it is.

The stand-in's facts are those of HumanSignal/label-studio-ml-backend at d02cedf (2.0.1dev0): model.py and
response.py, and label_studio_sdk's LabelInterface (2.1.2). LABEL_STUDIO_PYTHON names a Python with the real
package (`make test-examples` makes one): then its WSGI application answers /health, /setup and /predict.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "label_studio"
PYTHON = os.environ.get("LABEL_STUDIO_PYTHON", sys.executable if find_spec("label_studio_ml") else None)
INTERFACE = (EXAMPLE / "labeling_interface.xml").read_text(encoding="utf-8")


class LabelStudioMLBase:
    def __init__(self, label_config: str) -> None:
        self._kept: dict[str, str] = {}
        self._tags = ElementTree.fromstring(label_config)
        self.label_interface = SimpleNamespace(get_tag=self._tag)
        self.setup()

    def set(self, key: str, value: str) -> None:
        self._kept[key] = value

    def get(self, key: str) -> str:
        return self._kept[key]

    def get_first_tag_occurence(self, control_type: str, object_type: str) -> tuple[str, str, str]:
        control, image = self._tags.find(control_type), self._tags.find(object_type)
        assert control is not None and image is not None
        return control.attrib["name"], image.attrib["name"], image.attrib["value"].removeprefix("$")

    def get_local_path(self, url: str, task_id: int | None = None) -> str:
        return url

    def _tag(self, name: str) -> SimpleNamespace:
        (control,) = self._tags.findall(f"*[@name='{name}']")
        labels = {tag.attrib["value"]: SimpleNamespace(attr=tag.attrib) for tag in control}
        return SimpleNamespace(labels_attrs=labels)


@pytest.fixture
def model(load_example: Callable[..., ModuleType], base_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LIRA_URL", base_url)
    backend = {
        "label_studio_ml": {},
        "label_studio_ml.model": {"LabelStudioMLBase": LabelStudioMLBase},
        "label_studio_ml.response": {"ModelResponse": SimpleNamespace},
    }
    return load_example("label_studio/model.py", backend).Lira(INTERFACE)


def typed(text: str) -> dict[str, Any]:
    """What Label Studio sends when someone submits the <TextArea>."""
    value = {"text": [text]}
    return {"result": [{"type": "textarea", "from_name": "prompt", "to_name": "image", "value": value}]}


@pytest.fixture
def asked(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions that the model asks, in their order."""
    questions: list[str] = []
    segment = model._segment
    monkeypatch.setattr(
        model, "_segment", lambda picture, question: questions.append(question) or segment(picture, question)
    )
    return questions


def test_every_label_of_every_task_is_asked(model: Any, asked: list[str], sample: Path) -> None:
    task = {"id": 1, "data": {"image": str(sample)}}
    response = model.predict([task, task])
    assert asked == ["the orange star", "the fish"] * 2
    assert len(response.predictions) == 2
    for prediction in response.predictions:
        regions = prediction["result"]
        assert [region["value"]["brushlabels"] for region in regions] == [["star"], ["fish"]]
        assert {(region["from_name"], region["to_name"], region["type"]) for region in regions} == {
            ("brush", "image", "brushlabels")
        }
        assert len({region["id"] for region in regions}) == 2
        assert prediction["score"] == pytest.approx(sum(region["score"] for region in regions) / 2)
    assert response.model_version == model.get("model_version")


@pytest.mark.parametrize(("text", "label"), [("the fish on the left", "fish"), ("the umbrella", "star")])
def test_a_typed_text_is_asked_instead(
    model: Any, asked: list[str], sample: Path, text: str, label: str
) -> None:
    response = model.predict([{"data": {"image": str(sample)}}], typed(text))
    assert asked == [text]
    assert [region["value"]["brushlabels"] for region in response.predictions[0]["result"]] == [[label]]


def test_the_servers_message_is_told(model: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(RuntimeError, match="/v1/segment answered 400"):
        model.predict([{"data": {"image": str(tmp_path / "broken.png")}}])


def test_the_real_backend(model: Any, base_url: str, sample: Path, tmp_path: Path) -> None:
    if PYTHON is None:
        pytest.skip(
            "label_studio_ml is not installed, and LABEL_STUDIO_PYTHON is not set (make test-examples)"
        )
    driver = [PYTHON, HERE / "drive_label_studio.py", EXAMPLE, sample]
    environment = {
        **os.environ,
        "LIRA_URL": base_url,
        "MODEL_DIR": str(tmp_path),  # where the backend keeps its database
        "LOCAL_FILES_DOCUMENT_ROOT": str(sample.parent),
    }
    done = subprocess.run(driver, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["health"] == {"status": "UP", "model_class": "Lira"}
    assert told["setup"]["model_version"] == told["labels"]["results"][0]["model_version"]
    (prediction,) = told["labels"]["results"]
    assert [region["value"]["brushlabels"] for region in prediction["result"]] == [["star"], ["fish"]]
    (prediction,) = told["typed"]["results"]
    assert [region["value"]["brushlabels"] for region in prediction["result"]] == [["fish"]]
    # Label Studio's own decoder gives as many pixels as lira-edge says.
    asked = [model._segment(sample.read_bytes(), text) for text in ("the orange star", "the fish")]
    assert told["painted"] == [mask["area"] for masks in asked for mask in masks]
