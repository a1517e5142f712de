"""The ROS 2 node by stand-ins for rclpy and the messages: nothing here shows that it runs in ROS 2.

The messages have the fields of ros-perception/vision_msgs 4.1.1 and ros2/common_interfaces (msg/*.msg) and no
other: a wrong name fails.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "ros2" / "lira_node.py"


def message(name: str, **fields: Callable[[], Any]) -> type:
    """A class like those that ROS 2 generates: fields with defaults, set by keyword, and none beside them."""

    def __init__(self: object, **values: object) -> None:
        for field, default in fields.items():
            setattr(self, field, values.pop(field) if field in values else default())
        assert not values, f"{name} has no {', '.join(values)}"

    return type(name, (), {"__slots__": tuple(fields), "__init__": __init__})


Header = message("Header", stamp=SimpleNamespace, frame_id=str)
String = message("String", data=str)
Image = message(
    "Image",
    header=Header,
    height=int,
    width=int,
    encoding=str,
    is_bigendian=int,
    step=int,
    data=bytes,
)
Point2D = message("Point2D", x=float, y=float)
Pose2D = message("Pose2D", position=Point2D, theta=float)
BoundingBox2D = message("BoundingBox2D", center=Pose2D, size_x=float, size_y=float)
ObjectHypothesis = message("ObjectHypothesis", class_id=str, score=float)
ObjectHypothesisWithPose = message("ObjectHypothesisWithPose", hypothesis=ObjectHypothesis, pose=object)
Detection2D = message("Detection2D", header=Header, results=list, bbox=BoundingBox2D, id=str)
Detection2DArray = message("Detection2DArray", header=Header, detections=list)


class Node:
    """rclpy's node as far as the example uses it; `published` and `errors` are what comes out."""

    def __init__(self, name: str) -> None:
        self.published: dict[str, list[Any]] = {}
        self.subscribed: dict[str, Callable[[Any], None]] = {}
        self.errors: list[str] = []

    def declare_parameter(self, name: str, value: object) -> SimpleNamespace:
        return SimpleNamespace(value=value)

    def create_publisher(self, kind: type, topic: str, qos: object) -> SimpleNamespace:
        sent = self.published.setdefault(topic, [])
        return SimpleNamespace(publish=sent.append)

    def create_subscription(
        self, kind: type, topic: str, callback: Callable[[Any], None], qos: object
    ) -> None:
        self.subscribed[topic] = callback

    def get_logger(self) -> SimpleNamespace:
        return SimpleNamespace(error=self.errors.append)


@pytest.fixture
def example(load_example: Callable[..., ModuleType]) -> ModuleType:
    def policy(*names: str) -> SimpleNamespace:
        return SimpleNamespace(**dict.fromkeys(names))

    ros = {
        "rclpy": {},
        "rclpy.node": {"Node": Node},
        "rclpy.qos": {
            "QoSProfile": lambda *, history, depth, reliability: depth,
            "HistoryPolicy": policy("KEEP_LAST"),
            "ReliabilityPolicy": policy("BEST_EFFORT"),
        },
        "sensor_msgs": {},
        "sensor_msgs.msg": {"Image": Image},
        "std_msgs": {},
        "std_msgs.msg": {"String": String},
        "vision_msgs": {},
        "vision_msgs.msg": {
            "Detection2D": Detection2D,
            "Detection2DArray": Detection2DArray,
            "ObjectHypothesisWithPose": ObjectHypothesisWithPose,
        },
    }
    return load_example("ros2/lira_node.py", ros)


def frame_of(pixels: np.ndarray, encoding: str, padding: int = 0) -> Any:
    """pixels: [H, W, 3] or [H, W]; each row is followed by `padding` bytes."""
    rows = pixels.reshape(len(pixels), -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    height, width = pixels.shape[:2]
    return Image(
        header=Header(frame_id="camera"),
        height=height,
        width=width,
        encoding=encoding,
        step=rows.shape[1],
        data=rows.tobytes(),
    )


def test_it_says_that_it_was_not_run() -> None:
    tree = ast.parse(EXAMPLE.read_text(encoding="utf-8"))
    assert (ast.get_docstring(tree) or "").startswith("NOT RUN")


@pytest.mark.parametrize("padding", [0, 5])
def test_frames_of_each_encoding_arrive_as_they_are(example: ModuleType, padding: int) -> None:
    bgr = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    for encoding, sent, expected in (
        ("bgr8", bgr, bgr),
        ("rgb8", bgr[:, :, ::-1], bgr),
        ("mono8", bgr[:, :, 0], bgr[:, :, :1].repeat(3, axis=2)),
    ):
        png = example.image_to_png(frame_of(sent, encoding, padding))
        assert (cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR) == expected).all()


def test_another_encoding_is_named(example: ModuleType) -> None:
    with pytest.raises(ValueError, match="'16UC1', expected one of rgb8, bgr8, mono8"):
        example.image_to_png(frame_of(np.zeros((2, 4), np.uint8), "16UC1"))


def test_a_frame_gives_detections_and_masks(
    example: ModuleType, base_url: str, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = example.LiraNode()
    node.url = base_url
    node.subscribed["question"](String(data="the orange star"))
    pixels = cv2.imread(str(sample))
    node.subscribed["image"](frame_of(pixels, "bgr8"))
    assert node.errors == []
    (found,), (masks,) = node.published["detections"], node.published["masks"]
    assert found.header.frame_id == masks.header.frame_id == "camera"
    (detection,) = found.detections
    assert detection.results[0].hypothesis.class_id == "the orange star"
    assert 0 < detection.results[0].hypothesis.score <= 1
    assert (masks.height, masks.width, masks.encoding, masks.step) == (
        *pixels.shape[:2],
        "mono8",
        masks.width,
    )
    values = np.frombuffer(masks.data, np.uint8).reshape(masks.height, masks.width)
    assert set(np.unique(values)) == {0, 1}
    ys, xs = values.nonzero()
    box = detection.bbox
    assert box.center.position.x == (xs.min() + xs.max() + 1) / 2
    assert box.center.position.y == (ys.min() + ys.max() + 1) / 2
    assert (box.size_x, box.size_y) == (np.ptp(xs) + 1, np.ptp(ys) + 1)


def test_a_server_that_is_gone_leaves_the_node_alive(example: ModuleType) -> None:
    node = example.LiraNode()
    node.url = "http://127.0.0.1:9"
    node.subscribed["image"](frame_of(np.zeros((2, 4, 3), np.uint8), "bgr8"))
    assert len(node.errors) == 1 and "127.0.0.1" in node.errors[0]
    assert node.published == {"detections": [], "masks": []}
