"""Turn off what libraries send to their makers. They read these variables when they are first imported."""

from __future__ import annotations

import os

OFF = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime from 1.29 on, and onnxruntime-genai
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub: what else is installed, in each request
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment variable -> its value. Child processes inherit them."""


def turn_off() -> None:
    """Set the variables, whatever they were."""
    os.environ.update(OFF)
