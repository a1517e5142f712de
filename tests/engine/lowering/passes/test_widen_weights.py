"""16-bit weights in fp32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.lowering.passes.widen_weights import WidenWeights


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_widened_weights_keep_their_values(dtype: str, run: Any, counts: Any, case: Any) -> None:
    model, x = WidenWeights()(case.model(dtype)).model, case.x()
    assert counts(model) == {"MatMul": 1}
    np.testing.assert_allclose(run(model, {"x": x})[0], x @ case.weight(dtype), atol=1e-5)


def test_a_16_bit_weight_without_uses_is_removed(new_graph: Any, matrix: Any, assert_unchanged: Any) -> None:
    g = new_graph([2, 8])
    g.weight("unused", matrix(8, 4).astype(np.float16))
    model = g.finish(g.op("Neg", g.x, shape=[2, 8]))
    assert WidenWeights()(model).modified and not model.graph.initializers
    assert_unchanged(WidenWeights(), model)


def test_other_casts_of_weights_stay(new_graph: Any, matrix: Any, assert_unchanged: Any) -> None:
    g = new_graph([2, 8])
    single = g.op("Cast", g.weight("single", matrix(8, 8)), to=ir.DataType.FLOAT, shape=[8, 8])
    half = g.weight("half", matrix(8, 8).astype(np.float16))
    double = g.op("Cast", half, to=ir.DataType.DOUBLE, dtype=ir.DataType.DOUBLE, shape=[8, 8])
    both = g.op("Add", single, g.op("CastLike", double, single, shape=[8, 8]), shape=[8, 8])
    assert_unchanged(WidenWeights(), g.finish(g.op("MatMul", g.x, both, shape=[2, 8])))


def test_a_cast_that_is_left_is_noticed(case: Any) -> None:
    with pytest.raises(ir.passes.PostconditionError, match="still casts a 16-bit weight"):
        WidenWeights().ensures(case.model("bf16"))
