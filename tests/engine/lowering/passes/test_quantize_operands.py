"""Matmuls of 8-bit operands."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from lira_engine.engines.accuracy import rms_error
from lira_engine.lowering.passes.quantize_operands import FORMATS, QuantizeOperands
from lira_engine.lowering.passes.use_mixed_precision import UseMixedPrecision
from lira_engine.lowering.pipeline import apply

pytestmark = pytest.mark.portable
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("kind, limit", [("int8", 0.02), ("fp8", 0.06)])
def test_both_operands_are_in_eight_bits(
    kind: str, limit: float, new_graph: Any, run: Any, matrix: Any
) -> None:
    """Q/DQ alone are around the matmul; its result is close, and inputs beyond the range saturate."""
    w, x = matrix(64, 24), RANDOM.normal(size=(3, 64)).astype(np.float32)
    g = new_graph([3, 64])
    model = g.finish(g.op("MatMul", g.x, g.weight("w", w), shape=[3, 24]))
    largest = float(np.abs(x).max())
    ranges = lambda name: (-largest, largest) if name == "w" else None  # noqa: E731
    passes = [QuantizeOperands(kind, ranges), UseMixedPrecision(), common.RemoveUnusedNodesPass()]
    model = apply(model, passes)
    matmul = next(node for node in model.graph if node.op_type == "MatMul")
    assert [value.producer().op_type for value in matmul.inputs] == ["DequantizeLinear"] * 2  # type: ignore[union-attr]
    assert model.graph.initializers["w.q8"].dtype == FORMATS[kind].dtype
    assert 1e-3 < rms_error(run(model, {"x": x})[0], x @ w) < limit
    assert rms_error(run(model, {"x": 8 * x})[0], 8 * x @ w) > 0.3


@pytest.mark.parametrize("low, high", [(-8.0, 1.0), (-1.0, 8.0)])
def test_a_range_reaches_as_far_as_its_larger_end(
    low: float, high: float, new_graph: Any, run: Any, matrix: Any
) -> None:
    w, x = matrix(16, 4), RANDOM.uniform(low, high, size=(3, 16)).astype(np.float32)
    g = new_graph([3, 16])
    model = g.finish(g.op("MatMul", g.x, g.weight("w", w), shape=[3, 4]))
    model = apply(model, [QuantizeOperands("int8", lambda name: (low, high))])
    assert rms_error(run(model, {"x": x})[0], x @ w) < 0.03


@pytest.mark.parametrize("kind, least", [("int8", 0.3), ("fp8", 0.0)])
def test_a_small_weight_has_its_share_of_the_formats_digits(
    kind: str, least: float, new_graph: Any, matrix: Any, values: Any
) -> None:
    """A floating-point format keeps three bits of any number, integers none of one below a half."""
    w = matrix(64, 4)
    w[0] = 100 * np.abs(w).max()
    g = new_graph([3, 64])
    matmul = g.op("MatMul", g.x, g.weight("w", w), shape=[3, 4])
    model = apply(g.finish(matmul), [QuantizeOperands(kind, lambda name: (-4.0, 4.0))])
    rounded = values(model, "w.q8") * values(model, "w.scales")
    assert least <= rms_error(rounded[1:], w[1:]) < (2 if kind == "int8" else 0.04)
    assert rms_error(rounded[:1], w[:1]) < 0.01


def test_one_value_in_two_ranges_is_rounded_twice(new_graph: Any, run: Any, matrix: Any, counts: Any) -> None:
    w, v, x = matrix(16, 4), matrix(16, 5), np.full((3, 16), 4, np.float32)
    g = new_graph([3, 16])
    parts = [
        g.op("MatMul", g.x, g.weight(name, weight), shape=[3, weight.shape[1]])
        for name, weight in (("w", w), ("v", v))
    ]
    model = g.finish(g.op("Concat", *parts, shape=[3, 9], axis=-1))
    model = apply(model, [QuantizeOperands("int8", lambda name: (-1.0, 1.0) if name == "w" else (-4.0, 4.0))])
    assert counts(model)["QuantizeLinear"] == 2
    found = run(model, {"x": x})[0]
    assert rms_error(found[:, :4], x @ w / 4) < 0.03  # it saturates
    assert rms_error(found[:, 4:], x @ v) < 0.03


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_column_of_zeros_stays_zero(kind: str, new_graph: Any, run: Any, matrix: Any, values: Any) -> None:
    w = matrix(16, 4)
    w[:, 1] = 0
    g = new_graph([3, 16])
    matmul = g.op("MatMul", g.x, g.weight("w", w), shape=[3, 4])
    model = apply(g.finish(matmul), [QuantizeOperands(kind, lambda name: (-4.0, 4.0))])
    assert (values(model, "w.scales") > 0).all()
    found = run(model, {"x": np.ones((3, 16), np.float32)})[0]
    assert np.isfinite(found).all() and not found[:, 1].any()


def test_matmuls_without_a_range_stay(new_graph: Any, matrix: Any, assert_unchanged: Any) -> None:
    g = new_graph([3, 16])
    model = g.finish(g.op("MatMul", g.x, g.weight("w", matrix(16, 4)), shape=[3, 4]))
    assert_unchanged(QuantizeOperands("int8", lambda name: None), model)
    with pytest.raises(ir.passes.PostconditionError, match="the matmul with w was not replaced"):
        QuantizeOperands("int8", lambda name: (-4.0, 4.0)).ensures(model)


def test_refuses_fp16_operands(new_graph: Any, matrix: Any) -> None:
    g = new_graph([3, 16], dtype=ir.DataType.FLOAT16)
    model = g.finish(g.op("MatMul", g.x, g.weight("w", matrix(16, 4).astype(np.float16)), shape=[3, 4]))
    with pytest.raises(ir.passes.PreconditionError, match="expected operands in fp32"):
        QuantizeOperands("int8", lambda name: (-4.0, 4.0))(model)


def test_a_weight_of_two_matmuls_is_rounded_once(new_graph: Any, run: Any, matrix: Any, counts: Any) -> None:
    """And a value of two matmuls: its QuantizeLinear is theirs."""
    w, v = matrix(16, 16), matrix(16, 12)[:, :8]
    x = RANDOM.uniform(-1, 1, size=(3, 16)).astype(np.float32)
    g = new_graph([3, 16])
    right, other = g.weight("w", w), g.weight("v", v)
    first = g.op("MatMul", g.x, right, shape=[3, 16])
    second = g.op("MatMul", first, right, shape=[3, 16])
    third = g.op("MatMul", g.x, other, shape=[3, 8])
    model = g.finish(g.op("Concat", second, third, shape=[3, 24], axis=-1))
    model = apply(model, [QuantizeOperands("int8", lambda name: (-1.0, 4.0))])
    assert counts(model)["QuantizeLinear"] == 2 and counts(model)["DequantizeLinear"] == 6
    assert rms_error(run(model, {"x": x})[0], np.concatenate([x @ w @ w, x @ v], -1)) < 0.03
