"""A graph that loads and does not run is told in one line, without where ONNX Runtime was compiled."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from lira_engine.bundle.manifest import StageSpec, TensorSpec
from lira_engine.errors import LiraError
from lira_engine.ort.package import said
from lira_engine.ort.run_errors import run_errors_told
from lira_engine.ort.stage import OrtStage


def spec(kind: str = "float32", shape: tuple[int | str, ...] = (2, "N")) -> StageSpec:
    return StageSpec(
        "s.onnx", "s.npz", {"x": TensorSpec("float32", (1, "N"))}, {"y": TensorSpec(kind, shape)}
    )


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """y [2, N] of x [1, N]: fails in the middle if x has another size than 4."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"], "turned")]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "N"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, "M"])
    made = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(np.array([2, 2]), "shape")])
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
        tmp_path / "s.onnx",
    )
    return tmp_path / "s.onnx"


def test_a_run_that_fails_is_one_line(graph: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with OrtStage("sefe", graph, spec()) as stage, pytest.raises(LiraError) as error:
        stage.run({"x": np.zeros((1, 3), np.float32)})
    told = str(error.value)
    assert f"cannot run {graph} (" in told and "build the engines again" in told
    assert "\n" not in told and "[ONNXRuntimeError]" not in told and ".cc:" not in told and ".h:" not in told
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (spec("float16"), r"y is a tensor\(float\)"),
        (spec(shape=(3, "N")), "expected float32"),
        (spec(shape=(2,)), "y"),
    ],
)
def test_tensors_of_another_type_or_shape_are_refused(graph: Path, changed: StageSpec, says: str) -> None:
    with pytest.raises(LiraError, match=f"{says}.*build the engines again"):
        OrtStage("sefe", graph, changed)


def test_what_is_no_error_of_onnx_runtime_stays_one() -> None:
    with pytest.raises(KeyError), run_errors_told("a graph"):
        raise KeyError("a bug")
    with pytest.raises(LiraError, match=r"cannot run a graph \(odd\)"), run_errors_told("a graph"):
        raise RuntimeError("odd")


def test_where_onnx_runtime_was_compiled_is_left_out() -> None:
    error = RuntimeError(
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while running Reshape "
        "node. Name:'r' Status Message: "
        "/home/other/onnxruntime/core/providers/cpu/tensor/reshape_helper.h:47 "
        "onnxruntime::ReshapeHelper::ReshapeHelper(const onnxruntime::TensorShape&, bool) size was false.\n"
        "Input shape:{3}"
    )
    found = said(error)
    assert found.startswith("Non-zero status code") and found.endswith("size was false. Input shape:{3}")
    assert "/home/other" not in found and "TensorShape&" not in found


def test_a_long_name_in_an_error_is_not_searched_for_minutes() -> None:
    started = time.process_time()
    found = said(RuntimeError("while running Gather node. Name:'" + "a/b.c" * 8000))  # took 51 s
    assert found.startswith("while running Gather node. Name:'a/b.c") and len(found) == 300
    assert time.process_time() - started < 5  # 0.1 s
