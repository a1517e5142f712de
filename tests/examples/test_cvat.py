"""The CVAT function against the real cvat_sdk, whose driver applies it to a task without a CVAT server."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

cvataa = pytest.importorskip("cvat_sdk.auto_annotation")
driver = pytest.importorskip("cvat_sdk.auto_annotation.driver")
sdk_masks = pytest.importorskip("cvat_sdk.masks")
models = pytest.importorskip("cvat_sdk.models")

QUESTIONS = "star=the orange star; the fish"


@pytest.fixture
def example(load_example: Callable[..., ModuleType]) -> ModuleType:
    return load_example("cvat/lira_cvat.py")


class Tasks:
    """CVAT's task 7 with the sample picture as its frame 3, and what is uploaded for it."""

    def __init__(self, picture: Path, label_types: dict[str, str]) -> None:
        self.picture, self.uploaded = picture, None
        self.labels = [
            SimpleNamespace(id=100 + i, name=name, type=kind, attributes=[], sublabels=[])
            for i, (name, kind) in enumerate(label_types.items())
        ]

    def dataset(self, client: object, task_id: int, **_: object) -> SimpleNamespace:
        """In place of cvat_sdk's TaskDataset, which downloads."""
        assert task_id == 7
        media = SimpleNamespace(load_image=lambda: Image.open(self.picture))
        sample = SimpleNamespace(frame_index=3, frame_name=self.picture.name, media=media)
        return SimpleNamespace(labels=self.labels, samples=[sample])

    def partial_update_annotations(
        self, action: str, task_id: int, patched_labeled_data_request: Any
    ) -> None:
        assert (action, task_id) == ("create", 7)
        self.uploaded = patched_labeled_data_request


def annotate(function: object, tasks: Tasks, monkeypatch: pytest.MonkeyPatch, **options: object) -> list[Any]:
    """The shapes that cvat_sdk's own driver accepts and would upload."""
    client = SimpleNamespace(
        logger=logging.getLogger("cvat"),
        tasks=SimpleNamespace(
            api=SimpleNamespace(partial_update_annotations=tasks.partial_update_annotations)
        ),
    )
    monkeypatch.setattr(driver, "TaskDataset", tasks.dataset)
    cvataa.annotate_task(client, 7, function, **options)
    return tasks.uploaded.shapes


def test_the_driver_uploads_masks(
    example: ModuleType, base_url: str, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = Tasks(sample, {"star": "mask", "the fish": "any"})
    shapes = annotate(example.create(QUESTIONS, url=base_url), tasks, monkeypatch)
    assert [(shape.label_id, shape.frame, shape.type.value, shape.source) for shape in shapes] == [
        (100, 3, "mask", "auto"),
        (101, 3, "mask", "auto"),
    ]
    width, height = Image.open(sample).size
    for shape in shapes:
        assert sdk_masks.decode_mask(shape.points, image_width=width, image_height=height).any()


def test_the_driver_uploads_polygons(
    example: ModuleType, base_url: str, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = Tasks(sample, {"star": "polygon", "the fish": "any"})
    function = example.create(QUESTIONS, url=base_url)
    shapes = annotate(function, tasks, monkeypatch, conv_mask_to_poly=True)
    assert {shape.type.value for shape in shapes} == {"polygon"}
    assert all(len(shape.points) >= 6 and len(shape.points) % 2 == 0 for shape in shapes)


def test_a_threshold_above_the_scores_leaves_nothing(
    example: ModuleType, base_url: str, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = Tasks(sample, {"star": "mask", "the fish": "mask"})
    function = example.create(QUESTIONS, url=base_url)
    assert annotate(function, tasks, monkeypatch, conf_threshold=1.0) == []


def context(**options: Any) -> Any:
    return driver._DetectionFunctionContextImpl(frame_name="frame.png", **options)


def test_shapes_are_in_the_pixels_that_cvat_gives(
    example: ModuleType, base_url: str, sample: Path, tmp_path: Path
) -> None:
    """A picture with an EXIF orientation: CVAT's pixels count, not an upright copy of them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(sample).convert("RGB").resize((200, 120)).save(tmp_path / "turned.png", exif=exif)
    (shape,) = example.create("fish", url=base_url).detect(context(), Image.open(tmp_path / "turned.png"))
    assert sdk_masks.decode_mask(shape.points, image_width=200, image_height=120).any()


def test_an_empty_mask_is_left_out_and_a_hole_stays(example: ModuleType) -> None:
    ring = np.zeros((8, 9), bool)
    ring[1:7, 2:8] = True
    ring[3:5, 4:6] = False
    (shape,) = example.shapes({"png": png(ring), "box": [2, 1, 8, 7]}, 0)
    assert (sdk_masks.decode_mask(shape.points, image_width=9, image_height=8) == ring).all()
    assert list(example.shapes({"png": png(np.zeros((8, 9), bool)), "box": None}, 0)) == []


def png(mask: np.ndarray) -> str:
    data = io.BytesIO()
    Image.fromarray(mask).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def test_labels_and_questions(example: ModuleType) -> None:
    function = example.create(" star = the orange star ;fish; ")
    assert [(label.name, label.id, label.type) for label in function.spec.labels] == [
        ("star", 0, "mask"),
        ("fish", 1, "mask"),
    ]
    with pytest.raises(ValueError, match="expected"):
        example.create(" ; ")


class Busy(BaseHTTPRequestHandler):
    """Answers 503 twice, then 400."""

    answers: ClassVar = [503, 503, 400]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        data = json.dumps({"error": {"message": "the text is too long"}}).encode()
        self.send_response(self.answers.pop(0))
        self.send_header("retry-after", "0")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def test_a_full_queue_is_waited_for_and_an_error_is_told(example: ModuleType, sample: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        function = example.create("fish", url=f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(RuntimeError, match=r"answered 400.*the text is too long"):
            function.detect(context(), Image.open(sample))
        server.shutdown()
    assert Busy.answers == []


def test_the_command_line_loads_it() -> None:
    """By the loader and the parser of parameters of `cvat-cli task auto-annotate`."""
    common = pytest.importorskip("cvat_cli._internal.common")
    parsers = pytest.importorskip("cvat_cli._internal.parsers")
    asked = dict([parsers.parse_function_parameter(f"questions=str:{QUESTIONS}")])
    file = Path(__file__).parents[2] / "examples" / "cvat" / "lira_cvat.py"
    function = common.FunctionLoader(None, file, asked).load()
    assert [label.name for label in function.spec.labels] == ["star", "the fish"]
