"""Run one convolution on the GPU, to see whether ONNX Runtime, the driver and the libraries work together."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lira_engine.ort.device import Device
from lira_engine.ort.gpu_errors import gpu_errors_told
from lira_engine.ort.session import open_session

_SHAPE = [1, 8, 8, 8]


def try_gpu(device: Device) -> None:
    """Raises LiraError as opening and running an engine on `device` would. A convolution needs cuDNN, too."""
    weight = numpy_helper.from_array(np.ones((8, 8, 3, 3), np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "weight"], ["y"])],
        "trial",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, _SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trial.onnx"
        onnx.save(model, path)
        session = open_session(path, threads=1, device=device)
    with gpu_errors_told(device):
        session.run(None, {"x": np.zeros(_SHAPE, np.float32)})
