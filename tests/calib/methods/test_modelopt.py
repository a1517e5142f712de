"""ModelOpt's ranges: its own run where it is installed, and what is said where it is not."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from lira_calib.methods.modelopt import _ranges, modelopt_ranges
from lira_engine.bundle.external_data import save_graph
from lira_engine.errors import LiraError

WIDTH = 64


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Two matmuls after a norm and a Gelu."""
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    g (float[1,16,{WIDTH}] x, float[{WIDTH},{WIDTH}] w1, float[{WIDTH},{WIDTH}] w2)
      => (float[1,16,{WIDTH}] y) {{
      [first] a = MatMul(x, w1)
      [gelu] b = Gelu(a)
      [second] y = MatMul(b, w2)
    }}"""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 8 for name in ("w1", "w2")}
    model = ir.from_onnx_text(text, initializers=[ir.tensor(a, name=name) for name, a in arrays.items()])
    del model.graph.inputs[1:]
    save_graph(model, tmp_path / "stage.onnx")
    return tmp_path / "stage.onnx"


def feeds() -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((1, 16, WIDTH)).astype(np.float32) * scale} for scale in (1, 2)]


def test_its_largest_values_are_those_of_the_feeds(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("modelopt.onnx", reason="the extra modelopt is not installed")
    before = sorted(file.parent.iterdir())
    found = modelopt_ranges(file, feeds(), file.parent)
    largest = max(float(np.abs(one["x"]).max()) for one in feeds())
    assert found["w1"] == pytest.approx((-largest, largest), rel=1e-3)
    assert set(found) == {"w1", "w2"} and found["w2"][1] > 1
    assert sorted(file.parent.iterdir()) == before
    assert capfd.readouterr() == ("", "")


def test_a_missing_library_is_told_with_the_line_that_installs_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "modelopt.onnx.quantization", None)
    with pytest.raises(LiraError, match=r"pip install 'lira-edge\[modelopt\]'"):
        modelopt_ranges(file, feeds(), file.parent)


def test_entropy_is_narrower(file: Path) -> None:
    pytest.importorskip("modelopt.onnx", reason="the extra modelopt is not installed")
    wide, narrow = (modelopt_ranges(file, feeds(), file.parent, method) for method in ("max", "entropy"))
    assert narrow["w1"][1] < wide["w1"][1]


def test_other_methods_are_refused(file: Path) -> None:
    with pytest.raises(LiraError, match="expected max, entropy"):
        modelopt_ranges(file, feeds(), file.parent, method="mse")


def test_ranges_are_those_of_the_inputs_of_known_matmuls() -> None:
    def scale(name: str, value: float) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(np.array(value, np.float32), name)

    def product(name: str, left: str) -> list[onnx.NodeProto]:
        return [
            helper.make_node("DequantizeLinear", ["q", left], [f"{name}.x"]),
            helper.make_node("MatMul", [f"{name}.x", "w"], [f"{name}.y"], name=name),
        ]

    nodes = [*product("a", "s1"), *product("b", "s2"), *product("other", "s1")]
    nodes.append(helper.make_node("MatMul", ["x", "w"], ["z"], name="float"))
    graph = helper.make_graph(nodes, "g", [], [], [scale("s1", 0.1), scale("s2", 0.3)])
    found = _ranges(helper.make_model(graph), {"a": "shared", "b": "shared", "float": "left"}, 100)
    assert found == {"shared": pytest.approx((-30, 30))}
