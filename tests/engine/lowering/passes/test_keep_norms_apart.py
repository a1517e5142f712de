"""Residual sums before layer norms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from lira_engine.lowering.passes.keep_norms_apart import KeepNormsApart
from lira_engine.lowering.pipeline import apply


def residual(new_graph: Any, other: Any = None) -> ir.Model:
    """x [1,6,8] -> norm(x + relu(x)); `other`: a constant in place of relu(x)."""
    g = new_graph([1, 6, 8])
    right = g.op("Relu", g.x, shape=[1, 6, 8]) if other is None else g.weight("other", other)
    total = g.op("Add", g.x, right, shape=[1, 6, 8])
    scale = g.weight("scale", np.linspace(1, 2, 8).astype(np.float32))
    return g.finish(g.op("LayerNormalization", total, scale, shape=[1, 6, 8]), opset=21)


def optimized(model: ir.Model, folder: Path) -> set[str]:
    """Return the operators of the graph that ONNX Runtime runs."""
    ir.save(model, folder / "g.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(folder / "g.onnx", options)
    return {node.op_type for node in ir.load(folder / "optimized.onnx").graph}


def test_onnx_runtime_does_not_fuse_them(new_graph: Any, run: Any, tmp_path: Path) -> None:
    assert "SkipLayerNormalization" in optimized(residual(new_graph), tmp_path)
    model = residual(new_graph)
    with pytest.raises(ir.passes.PostconditionError, match="is still an Add"):
        KeepNormsApart().ensures(model)
    model = apply(model, [KeepNormsApart()])
    assert optimized(model, tmp_path) == {"Relu", "Sum", "LayerNormalization"}
    x = np.random.default_rng(0).standard_normal((1, 6, 8), dtype=np.float32)
    expected = run(residual(new_graph), {"x": x})[0]
    np.testing.assert_allclose(run(model, {"x": x})[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(8,), (1, 6, 8)], ids=["a bias", "a table"])
def test_sums_with_constants_stay(shape: tuple[int, ...], new_graph: Any, assert_unchanged: Any) -> None:
    assert_unchanged(KeepNormsApart(), residual(new_graph, np.ones(shape, np.float32)))
