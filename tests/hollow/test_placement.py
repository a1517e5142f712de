"""Every node of lira-nano runs on the GPU: the real onnxruntime-gpu places them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from lira_engine import Bundle, LiraError
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.record import read_build
from lira_engine.ort.build_cuda import checked_placement
from lira_engine.ort.device import cuda_device
from lira_engine.ort.placement import check_placement, placement_of_run

CUDA = "CUDAExecutionProvider"
PRECISIONS = ("fp32", "fp16", "int4")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_node_runs_on_the_gpu(built: Callable[[str], Path], precision: str, stage: str) -> None:
    bundle = Bundle.open(built(precision))
    folder = bundle.engine_folder("cuda", precision)
    stored = read_build(folder, "").precisions[stage]
    found = checked_placement(bundle, stage, folder / f"{stage}.onnx", stored, cuda_device())
    print(stage, precision, found.text())
    assert found.elsewhere == () and found.nodes.keys() == {CUDA}


def test_a_node_that_the_gpu_lacks_is_named(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "xy")
    nodes = [
        helper.make_node("Exp", ["x"], ["e"], name="on the gpu"),
        helper.make_node("Unique", ["e"], ["y"], name="on the cpu", axis=0),
    ]
    graph = helper.make_graph(nodes, "mixed", [x], [y])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    device = cuda_device()
    found = placement_of_run(tmp_path / "m.onnx", device, {"x": np.ones((2, 3), np.float32)})
    assert [node.name for node in found.elsewhere] == ["on the cpu"] and found.copies == 1
    with pytest.raises(LiraError, match=r"1 nodes of m ran on CPUExecutionProvider.*Unique on the cpu"):
        check_placement("m", found, device)
