"""Matmuls of activations in a fixed range of 8-bit integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.engines.accuracy import rms_error
from lira_engine.lowering.passes.use_matmul_integer_to_float import UseMatMulIntegerToFloat, step_of
from lira_engine.lowering.passes.widen_weights import WidenWeights
from lira_engine.lowering.weights import rounded


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("low, high", [(-4.0, 4.0), (-1.0, 6.0), (0.5, 4.0), (-4.0, -0.5)])
def test_the_result_is_that_of_the_rounded_operands(
    low: float, high: float, dtype: str, run: Any, counts: Any, case: Any
) -> None:
    """Computed here in integers; what is beyond the range saturates, zero stays zero."""
    passes = [UseMatMulIntegerToFloat(lambda name: (low, high)), WidenWeights()]
    model = case.model(dtype)
    for one in passes:
        model = one(model).model
    x, stored = case.x(), ir.tensor(case.stored(dtype))
    x[0, 0, :5] = 0
    scale, zero = step_of(low, high)
    integers = np.clip(np.rint(x / scale) + zero, 0, 255)
    assert (integers[0, 0, :5] == zero).all()
    sums = (integers - zero) @ rounded(stored)[0].astype(np.float64)
    expected = (sums * scale * rounded(stored)[1]).astype(np.float32)
    assert rms_error(run(model, {"x": x})[0], expected) < 1e-6
    assert counts(model) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    clipped = np.clip(x, min(low, 0), max(high, 0))
    assert rms_error(expected, clipped @ case.weight(dtype)) < 0.02


def test_matmuls_share_the_rounded_value_and_the_rounded_weight(
    new_graph: Any, run: Any, matrix: Any, counts: Any
) -> None:
    """Where value, or weight, and range are the same."""
    w, v, u = matrix(16, 16), matrix(16, 12), matrix(16, 8)
    x = np.random.default_rng(0).uniform(-1, 1, size=(3, 16)).astype(np.float32)
    g = new_graph([3, 16])
    right = g.weight("w", w)
    twice = g.op("MatMul", g.op("MatMul", g.x, right, shape=[3, 16]), right, shape=[3, 16])
    others = [g.op("MatMul", g.x, g.weight(n, a), shape=[3, a.shape[1]]) for n, a in (("v", v), ("u", u))]
    model = g.finish(g.op("Concat", twice, *others, shape=[3, 36], axis=-1), opset=21)
    ranges = {"w": (-2.0, 2.0), "v": (-2.0, 2.0), "u": (-1.0, 1.0)}
    UseMatMulIntegerToFloat(ranges.get)(model)
    assert counts(model) == {"QuantizeLinear": 3, "MatMulIntegerToFloat": 4, "Concat": 1}
    assert sum(name.endswith(".q8") for name in model.graph.initializers) == 3
    expected = np.concatenate([x @ w @ w, x @ v, x @ u], -1)
    assert 1e-3 < rms_error(run(model, {"x": x})[0], expected) < 0.03


def test_matmuls_without_a_range_stay(case: Any, assert_unchanged: Any) -> None:
    assert_unchanged(UseMatMulIntegerToFloat(lambda name: None), case.model())
    with pytest.raises(Exception, match="the matmul with w was not replaced"):
        UseMatMulIntegerToFloat(lambda name: (-1.0, 1.0)).ensures(case.model())


def test_a_range_of_nothing_has_a_positive_scale() -> None:
    scale, zero = step_of(0.0, 0.0)
    assert scale > 0 and zero == 0
