"""The model of X-AnyLabeling-Server: by a stand-in for its interface, and by the real server where it is.

The stand-in's facts are those of CVHub520/X-AnyLabeling-Server at 70599dc (0.0.11): app/models/__init__.py,
app/schemas/shape.py, app/core/registry.py. X_ANYLABELING_SERVER names a checkout, X_ANYLABELING_PYTHON a
Python with its dependencies (`make test-examples` makes both): then the real server loads the model and
answers.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import pytest
import yaml

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "x_anylabeling"
CONFIG = yaml.safe_load((EXAMPLE / "lira.yaml").read_text(encoding="utf-8"))


class BaseModel:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.model_id, self.display_name = config, config["model_id"], config["display_name"]
        self.params = config.get("params", {})

    def get_metadata(self) -> dict[str, Any]:
        return {
            "display_name": self.display_name,
            "widgets": self.config.get("widgets", []),
            "params": self.params,
        }


@dataclass(kw_only=True)
class Shape:
    label: str
    shape_type: str
    points: list[list[float]]
    score: float | None = None
    group_id: int | None = None

    def __post_init__(self) -> None:
        assert self.shape_type == "polygon"
        assert self.score is None or 0 <= self.score <= 1
        assert self.group_id is None or self.group_id > 0


def parse_prompts(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in re.split("[,.]", text) if part.strip()))


@pytest.fixture
def example(load_example: Callable[..., ModuleType]) -> ModuleType:
    registered: dict[str, type] = {}

    def register_model(name: str) -> Callable[[type], type]:
        return lambda cls: registered.setdefault(name, cls)

    server = {
        "app": {},
        "app.core": {},
        "app.core.registry": {"register_model": register_model},
        "app.models": {"BaseModel": BaseModel, "parse_prompts": parse_prompts},
        "app.schemas": {},
        "app.schemas.shape": {"Shape": Shape},
    }
    module = load_example("x_anylabeling/lira.py", server)
    assert registered == {CONFIG["model_id"]: module.Lira}
    return module


@pytest.fixture
def model(example: ModuleType, base_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LIRA_URL", base_url)
    model = example.Lira(CONFIG)
    model.load()
    return model


def test_a_shape_for_each_text(model: Any, sample: Path) -> None:
    picture = cv2.imread(str(sample))
    reply = model.predict(picture, {"text_prompt": "the orange star, the fish, the fish"})
    assert {shape.label for shape in reply["shapes"]} == {"the orange star", "the fish"}
    assert reply["description"] == ""
    height, width = picture.shape[:2]
    for shape in reply["shapes"]:
        assert shape.points[0] == shape.points[-1] and len(shape.points) >= 4
        assert all(0 <= x <= width and 0 <= y <= height for x, y in shape.points)


def test_a_description_with_shapes(model: Any, sample: Path) -> None:
    reply = model.predict(cv2.imread(str(sample)), {"current_task": "gcg"})
    assert reply["shapes"] and all(shape.label in reply["description"] for shape in reply["shapes"])


def test_no_text_is_no_shape_and_a_threshold_counts(model: Any, sample: Path) -> None:
    picture = cv2.imread(str(sample))
    assert model.predict(picture, {"text_prompt": " , "}) == {"shapes": [], "description": ""}
    asked = {"text_prompt": "the orange star", "conf_threshold": 1.0}
    assert model.predict(picture, asked)["shapes"] == []


def test_parts_of_a_mask_share_a_group(example: ModuleType) -> None:
    square = {"exterior": [[0, 0], [4, 0], [4, 4]], "holes": [[[1, 1], [2, 1], [2, 2]]]}
    masks = [
        {"label": "a", "score": 0.5, "polygons": [square]},
        {"label": "b", "score": 0.9, "polygons": [square, square]},
        {"label": "c", "score": 0.9, "polygons": []},
    ]
    shapes = example.shapes(masks, threshold=0.5)
    assert [(shape.label, shape.group_id) for shape in shapes] == [("a", None), ("b", 2), ("b", 2)]
    assert shapes[0].points == [[0, 0], [4, 0], [4, 4], [0, 0]]


def test_groups_of_several_texts_differ(model: Any, sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    square = {"exterior": [[0, 0], [4, 0], [4, 4]], "holes": []}
    found = {"masks": [{"label": "a", "score": 0.9, "polygons": [square, square]}]}
    monkeypatch.setattr(model, "_segment", lambda png, **question: found)
    shapes = model.predict(cv2.imread(str(sample)), {"text_prompt": "the star, the fish"})["shapes"]
    first, second, third, fourth = (shape.group_id for shape in shapes)
    assert first == second != third == fourth


def test_a_model_without_its_server_is_not_loaded(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIRA_URL", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"127\.0\.0\.1"):
        example.Lira(CONFIG).load()


def test_tasks_use_widgets_that_the_configuration_has(model: Any) -> None:
    """The server refuses an `edit_text` without `button_send`, and an `edit_conf` without a number."""
    widgets = {widget["name"]: widget["value"] for widget in CONFIG["widgets"]}
    for task in model.get_metadata()["available_tasks"]:
        assert task["active_widgets"].keys() <= widgets.keys()
    assert "button_send" in widgets and "remote_task_select_combobox" in widgets
    assert isinstance(widgets["edit_conf"], float)
    assert widgets["toggle_preserve_existing_annotations"] is False


def test_the_real_server(base_url: str, sample: Path, tmp_path: Path) -> None:
    python, checkout = os.environ.get("X_ANYLABELING_PYTHON"), os.environ.get("X_ANYLABELING_SERVER")
    if not (python and checkout):
        pytest.skip("X_ANYLABELING_PYTHON and X_ANYLABELING_SERVER are not set (make test-examples)")
    driver = [python, HERE / "drive_x_anylabeling.py", checkout, EXAMPLE, tmp_path / "server", sample]
    done = subprocess.run(
        driver, env={**os.environ, "LIRA_URL": base_url}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert [task["id"] for task in told["models"]["lira"]["available_tasks"]] == ["refseg", "gcg"]
    by_text, described = told["refseg"]["data"], told["gcg"]["data"]
    assert {shape["label"] for shape in by_text["shapes"]} == {"the orange star", "the fish"}
    assert {shape["shape_type"] for shape in by_text["shapes"]} == {"polygon"}
    assert described["shapes"] and all(
        shape["label"] in described["description"] for shape in described["shapes"]
    )
