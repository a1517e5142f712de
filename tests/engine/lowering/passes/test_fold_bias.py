"""Biases and layer scales after 8-bit matmuls."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.lowering.passes.fold_bias import FoldBias
from lira_engine.lowering.passes.use_dynamic_quantize_matmul import UseDynamicQuantizeMatMul
from lira_engine.lowering.passes.use_matmul_integer_to_float import UseMatMulIntegerToFloat
from lira_engine.lowering.pipeline import Pass, apply

BIAS = np.linspace(-2, 3, 160).astype(np.float32)
SCALE = np.linspace(-1, 1, 160).astype(np.float32)
"""Trained layer scales have both signs."""
EIGHT_BITS = {
    "DynamicQuantizeMatMul": UseDynamicQuantizeMatMul(),
    "MatMulIntegerToFloat": UseMatMulIntegerToFloat(lambda name: (-5.0, 5.0)),
}


def layer(new_graph: Any, matrix: Any, scaled: bool = True, reads: int = 1) -> ir.Model:
    """x [1,7,128] -> x w + bias, scaled; `reads`: how many nodes read the matmul."""
    g = new_graph([1, 7, 128])
    made = g.op("MatMul", g.x, g.weight("w", matrix(128, 160)), shape=[1, 7, 160])
    y = g.op("Add", g.weight("bias", BIAS), made, shape=[1, 7, 160])
    if scaled:
        y = g.op("Mul", y, g.weight("scale", SCALE), shape=[1, 7, 160])
    if reads > 1:
        y = g.op("Sub", y, made, shape=[1, 7, 160])
    return g.finish(y, opset=21)


@pytest.mark.parametrize("operator", EIGHT_BITS)
@pytest.mark.parametrize("scaled", [True, False])
def test_results_stay(
    operator: str, scaled: bool, new_graph: Any, matrix: Any, run: Any, counts: Any
) -> None:
    x = np.random.default_rng(0).standard_normal((1, 7, 128), dtype=np.float32)
    before: Pass = EIGHT_BITS[operator]
    expected = run(apply(layer(new_graph, matrix, scaled), [before]), {"x": x})[0]
    model = apply(layer(new_graph, matrix, scaled), [before])
    with pytest.raises(ir.passes.PostconditionError, match="a bias or scale is left after"):
        FoldBias().ensures(model)
    model = apply(model, [FoldBias()])
    assert {"Add", "Mul"}.isdisjoint(counts(model))
    np.testing.assert_allclose(run(model, {"x": x})[0], expected, rtol=0, atol=2e-6)


def test_a_matmul_that_others_read_keeps_its_bias_outside(
    new_graph: Any, matrix: Any, assert_unchanged: Any
) -> None:
    model = apply(layer(new_graph, matrix, reads=2), [UseDynamicQuantizeMatMul()])
    assert_unchanged(FoldBias(), model)


def test_a_matmul_that_is_an_output_keeps_its_bias_outside(
    new_graph: Any, matrix: Any, assert_unchanged: Any
) -> None:
    model = apply(layer(new_graph, matrix), [UseDynamicQuantizeMatMul()])
    matmul = next(node for node in model.graph if node.op_type == "DynamicQuantizeMatMul")
    model.graph.outputs.append(matmul.outputs[0])
    assert_unchanged(FoldBias(), model)


@pytest.mark.parametrize("operator", EIGHT_BITS)
def test_a_second_bias_stays(operator: str, new_graph: Any, matrix: Any, run: Any, counts: Any) -> None:
    g = new_graph([1, 7, 128])
    y = g.op("MatMul", g.x, g.weight("w", matrix(128, 160)), shape=[1, 7, 160])
    for name in ("one", "two"):
        y = g.op("Add", y, g.weight(name, BIAS), shape=[1, 7, 160])
    x = np.random.default_rng(0).standard_normal((1, 7, 128), dtype=np.float32)
    model = apply(g.finish(y, opset=21), [EIGHT_BITS[operator]])
    expected = run(model, {"x": x})[0]
    model = apply(model, [FoldBias(), FoldBias()])
    assert counts(model)["Add"] == 1
    np.testing.assert_allclose(run(model, {"x": x})[0], expected, rtol=0, atol=2e-6)


def test_matmuls_that_share_a_weight_keep_their_own_scales(
    new_graph: Any, matrix: Any, run: Any, counts: Any
) -> None:
    g = new_graph([1, 160])
    w, scale = g.weight("w", matrix(160, 160)), g.weight("scale", SCALE)
    once = g.op("Mul", g.op("MatMul", g.x, w, shape=[1, 160]), scale, shape=[1, 160])
    model = g.finish(g.op("MatMul", once, w, shape=[1, 160]), opset=21)
    x = np.random.default_rng(0).standard_normal((1, 160), dtype=np.float32)
    model = apply(model, [UseDynamicQuantizeMatMul()])
    expected = run(model, {"x": x})[0]
    model = apply(model, [FoldBias()])
    assert counts(model) == {"DynamicQuantizeMatMul": 2}
    np.testing.assert_allclose(run(model, {"x": x})[0], expected, rtol=0, atol=1e-6)
