"""Large matmuls in 8-bit integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.lowering.passes.use_dynamic_quantize_matmul import UseDynamicQuantizeMatMul
from lira_engine.lowering.passes.widen_weights import WidenWeights
from lira_engine.lowering.weights import rounded


def rms(error: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt((error**2).mean() / (expected**2).mean()))


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_large_matmuls_compute_with_the_rounded_weights(dtype: str, run: Any, counts: Any, case: Any) -> None:
    model = WidenWeights()(UseDynamicQuantizeMatMul()(case.model(dtype)).model).model
    stored, x = ir.tensor(case.stored(dtype)), case.x()
    integers, scales = rounded(stored)
    weight = integers * scales
    assert rms(weight - case.weight(), case.weight()) < 0.01
    found = run(model, {"x": x})[0]
    assert rms(found - x @ weight, x @ weight) < 0.02
    assert counts(model) == {"DynamicQuantizeMatMul": 1}


@pytest.mark.parametrize("inputs, outputs", [(160, 100), (100, 160)])
def test_small_matmuls_stay(
    inputs: int, outputs: int, new_graph: Any, matrix: Any, assert_unchanged: Any
) -> None:
    g = new_graph([1, inputs])
    model = g.finish(g.op("MatMul", g.x, g.weight("w", matrix(inputs, outputs)), shape=[1, outputs]))
    assert_unchanged(UseDynamicQuantizeMatMul(), model)


def test_a_weight_of_two_matmuls_is_quantized_once(new_graph: Any, counts: Any, matrix: Any) -> None:
    g = new_graph([1, 128])
    w = g.weight("w", matrix(128, 128))
    model = g.finish(g.op("MatMul", g.op("MatMul", g.x, w, shape=[1, 128]), w, shape=[1, 128]))
    with pytest.raises(ir.passes.PostconditionError, match="the matmul with w was not replaced"):
        UseDynamicQuantizeMatMul().ensures(model)
    UseDynamicQuantizeMatMul()(model)
    assert counts(model) == {"DynamicQuantizeMatMul": 2}
    assert set(model.graph.initializers) == {"w", "w.q8", "w.scales"}
