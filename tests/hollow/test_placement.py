"""Every node of lira-nano runs on the GPU: the real onnxruntime-gpu places them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from lira_engine import Bundle, LiraError, open_engines
from lira_engine import build as building
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.judgement import Judgement, Loss
from lira_engine.engines.recipe import Form, Recipe, StageRecipe, sources_of, write_recipe
from lira_engine.engines.record import read_build
from lira_engine.ort.build_cuda import checked_placement
from lira_engine.ort.device import cuda_device
from lira_engine.ort.placement import check_placement, placement_of_run

CUDA = "CUDAExecutionProvider"
PRECISIONS = ("fp32", "fp16", "int4")
FORMS = {"q": Form("int4", 32), "gate": Form("int4", 32), "down": Form("int8", 32)}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_node_runs_on_the_gpu(built: Callable[[str], Path], precision: str, stage: str) -> None:
    bundle = Bundle.open(built(precision))
    folder = bundle.engine_folder("cuda", precision)
    stored = read_build(folder, "").precisions[stage]
    found = checked_placement(bundle, stage, folder / f"{stage}.onnx", stored, cuda_device(precision))
    assert found.elsewhere == () and found.nodes.keys() == {CUDA}


@pytest.mark.usefixtures("zeros_accepted")
def test_every_node_of_a_recipes_build_runs_on_the_gpu(
    fresh_nano: Callable[[], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The language model in the forms of a recipe, the other stages in fp16; nobody judges the zeros."""
    bundle = Bundle.open(fresh_nano())
    weights = {f"layers.{layer}.{name}": form for layer in range(4) for name, form in FORMS.items()}
    write_recipe(Recipe("forms", sources_of(bundle), {"llm": StageRecipe(weights)}), tmp_path)
    accepted = Judgement("engines", 1, 1, {"iou": 1.0}, {"iou": Loss(0.0, 0.0, 0.0, 0.01)}, "IoU -1%", "")
    monkeypatch.setattr(building, "installed_judge", lambda: lambda candidate: accepted)
    folder = building.build(bundle.path, "cuda", recipe=tmp_path)
    record = read_build(folder, "")
    assert record.precisions["llm"] == "mixed" and record.forms["llm"].keys() == {"int4/32", "int8/32"}
    for stage in STAGES:
        file = folder / f"{stage}.onnx"
        found = checked_placement(bundle, stage, file, record.precisions[stage], cuda_device("mixed"))
        assert found.elsewhere == () and found.nodes.keys() == {CUDA}


def test_a_node_that_the_gpu_lacks_is_named(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3]) for name in "xy")
    nodes = [
        helper.make_node("Exp", ["x"], ["e"], name="on the gpu"),
        helper.make_node("Unique", ["e"], ["y"], name="on the cpu", axis=0),
    ]
    graph = helper.make_graph(nodes, "mixed", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    save(model, tmp_path / "m.onnx")
    device = cuda_device("fp32")
    found = placement_of_run(tmp_path / "m.onnx", device, {"x": np.ones((2, 3), np.float32)})
    assert [node.name for node in found.elsewhere] == ["on the cpu"] and found.copies == 1
    with pytest.raises(LiraError, match=r"1 nodes of m ran on CPUExecutionProvider.*Unique on the cpu"):
        check_placement("m", found, device)


@pytest.mark.parametrize(("precision", "on_tensor_cores"), [("fp32", False), ("fp16", True), ("int4", True)])
def test_convolutions_of_half_floats_run_on_tensor_cores(
    built: Callable[[str], Path], asking: Callable[[], Any], precision: str, on_tensor_cores: bool
) -> None:
    """cuDNN offers a plan on them and one that is not; ONNX Runtime takes the first unless `use_tf32` is 0,
    which an fp32 build needs."""
    with open_engines(built(precision), "cuda", precision) as engines:
        (pixels,) = engines.semantic_encoder.input_specs.values()
        with asking() as asked:
            engines.semantic_encoder.run({"pixel_values": np.zeros((1, *pixels.shape[1:]), np.float32)})
    plans = {name for name in asked.kernels if name.startswith("cudnnBackendExecute")}
    assert plans == {"cudnnBackendExecute" + " on tensor cores" * on_tensor_cores}
