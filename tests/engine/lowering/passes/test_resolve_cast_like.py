"""CastLike of fp32 constants."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.lowering.passes.resolve_cast_like import ResolveCastLike


@pytest.fixture
def doubled(new_graph: Any) -> ir.Model:
    """x times a constant that is cast like x."""
    g = new_graph([2, 8])
    two = g.op("Constant", value=ir.tensor(np.array(2, np.float32)))
    return g.finish(g.op("Mul", g.x, g.op("CastLike", two, g.x), shape=[2, 8]), opset=21)


def test_the_constant_replaces_its_cast(
    doubled: ir.Model, run: Any, counts: Any, assert_unchanged: Any
) -> None:
    model = ResolveCastLike()(doubled).model
    assert counts(model) == {"Constant": 1, "Mul": 1}
    x = np.arange(16, dtype=np.float32).reshape(2, 8)
    np.testing.assert_array_equal(run(model, {"x": x})[0], 2 * x)
    assert_unchanged(ResolveCastLike(), model)


def test_a_cast_of_a_computed_value_stays(new_graph: Any, assert_unchanged: Any) -> None:
    g = new_graph([2, 8])
    x = g.op("Sigmoid", g.x, shape=[2, 8])
    assert_unchanged(ResolveCastLike(), g.finish(g.op("CastLike", x, g.x, shape=[2, 8])))


def test_refuses_a_reference_in_fp16_and_calls_of_functions(new_graph: Any) -> None:
    g = new_graph([2, 8], dtype=ir.DataType.FLOAT16)
    two = g.op("Constant", value=ir.tensor(np.array(2, np.float32)))
    with pytest.raises(ir.passes.PreconditionError, match="casts to FLOAT16, expected fp32"):
        ResolveCastLike()(g.finish(g.op("CastLike", two, g.x)))
    g = new_graph([2, 8])
    model = g.finish(g.op("F", g.x, domain="lira"))
    body = ir.Graph([], [], nodes=[], opset_imports={"": 24})
    model.functions["lira", "F", ""] = ir.Function("lira", "F", graph=body, attributes=[])
    with pytest.raises(ir.passes.PreconditionError, match="inline functions first"):
        ResolveCastLike()(model)


def test_a_cast_that_is_left_is_noticed(doubled: ir.Model) -> None:
    with pytest.raises(ir.passes.PostconditionError, match="still casts an fp32 constant"):
        ResolveCastLike().ensures(doubled)
