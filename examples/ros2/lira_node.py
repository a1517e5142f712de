"""NOT RUN: a ROS 2 node for LIRA, written without a machine that has ROS 2 on it.

Its functions and its callbacks were tested with stand-ins for rclpy and the messages. It asks a running
`lira-edge serve` over HTTP: camera nodes and engines stay apart, and one server may answer several robots.
README.md says how to use it.

    topic        type                          direction
    image        sensor_msgs/Image             in: rgb8, bgr8 or mono8
    question     std_msgs/String               in: replaces the parameter `question`
    detections   vision_msgs/Detection2DArray  out: a label, a score and a box for each mask
    masks        sensor_msgs/Image             out: mono8, 0 is background, detection i has the value i + 1
"""

import base64
import os
from typing import Any

import cv2
import numpy as np
import rclpy
import requests
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String
from vision_msgs.msg import Detection2D, Detection2DArray, ObjectHypothesisWithPose

# An answer takes longer than a frame: only the newest frame waits, the others are dropped.
NEWEST = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
CHANNELS = {"rgb8": 3, "bgr8": 3, "mono8": 1}


class LiraNode(Node):
    """Asks the question about each frame that comes while no answer is under way."""

    def __init__(self) -> None:
        super().__init__("lira")
        self.url = self.declare_parameter("url", "http://127.0.0.1:8000").value
        self.question = self.declare_parameter("question", "the orange star").value
        self.timeout = self.declare_parameter("timeout", 60.0).value  # seconds
        # Not a parameter: any node of the graph can read parameters.
        key = os.environ.get("LIRA_API_KEY")
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.detections = self.create_publisher(Detection2DArray, "detections", 10)
        self.masks = self.create_publisher(Image, "masks", 10)
        self.create_subscription(Image, "image", self.on_image, NEWEST)
        self.create_subscription(String, "question", self.on_question, 10)

    def on_question(self, message: String) -> None:
        self.question = message.data

    def on_image(self, frame: Image) -> None:
        """A frame that cannot be asked about is logged and left out; the next one is tried again."""
        try:
            reply = self.segment(image_to_png(frame))
        except (ValueError, requests.RequestException) as error:
            self.get_logger().error(str(error))
            return
        self.detections.publish(detections_of(reply, frame))
        self.masks.publish(masks_of(reply, frame))

    def segment(self, png: bytes) -> dict[str, Any]:
        """POST /v1/segment. Raises ValueError with lira-edge's message."""
        reply = requests.post(
            f"{self.url}/v1/segment",
            json={
                "image": base64.b64encode(png).decode(),
                "text": self.question,
                "formats": ["png"],
            },
            headers=self.headers,
            timeout=self.timeout,
        )
        if not reply.ok:
            raise ValueError(f"{reply.url} answered {reply.status_code}: {reply.text}")
        return reply.json()


def image_to_png(frame: Image) -> bytes:
    """A frame as PNG; rows may be padded (`step`). Raises ValueError for another encoding."""
    if frame.encoding not in CHANNELS:
        raise ValueError(
            f"the image is {frame.encoding!r}, expected one of {', '.join(CHANNELS)}: convert it first"
        )
    channels = CHANNELS[frame.encoding]
    rows = np.frombuffer(frame.data, np.uint8).reshape(frame.height, frame.step)
    pixels = rows[:, : frame.width * channels].reshape(frame.height, frame.width, channels)
    if frame.encoding == "rgb8":
        pixels = pixels[:, :, ::-1]
    return cv2.imencode(".png", np.ascontiguousarray(pixels))[1].tobytes()


def detections_of(reply: dict[str, Any], frame: Image) -> Detection2DArray:
    """A detection for each mask, in pixels of the frame and with its header. An empty mask has no size."""
    message = Detection2DArray(header=frame.header)
    for mask in reply["masks"]:
        x0, y0, x1, y1 = mask["box"] or (0, 0, 0, 0)
        result = ObjectHypothesisWithPose()
        result.hypothesis.class_id = mask["label"]
        result.hypothesis.score = float(mask["score"])
        detection = Detection2D(header=frame.header, id=str(mask["id"]), results=[result])
        detection.bbox.center.position.x = (x0 + x1) / 2
        detection.bbox.center.position.y = (y0 + y1) / 2
        detection.bbox.size_x = float(x1 - x0)
        detection.bbox.size_y = float(y1 - y0)
        message.detections.append(detection)
    return message


def masks_of(reply: dict[str, Any], frame: Image) -> Image:
    """The masks in one image of the frame's size; where two overlap, the later one is seen."""
    pixels = np.zeros((frame.height, frame.width), np.uint8)
    for i, mask in enumerate(reply["masks"][:255]):
        encoded = np.frombuffer(base64.b64decode(mask["png"].partition(",")[2]), np.uint8)
        pixels[cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE) > 127] = i + 1
    return Image(
        header=frame.header,
        height=frame.height,
        width=frame.width,
        encoding="mono8",
        is_bigendian=0,
        step=frame.width,
        data=pixels.tobytes(),
    )


def main() -> None:
    rclpy.init()
    node = LiraNode()
    try:
        rclpy.spin(node)
    finally:
        node.destroy_node()
        rclpy.shutdown()


if __name__ == "__main__":
    main()
