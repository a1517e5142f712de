"""Elementwise operators on the parts of a Concat."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.lowering.passes.delay_concat import DelayConcat


def gated(new_graph: Any, sizes: tuple[tuple[int, ...], tuple[int, ...]], axes: tuple[int, int]) -> ir.Model:
    """y = silu(concat of products) * concat of products, of x [3, 4]."""
    random, g = np.random.default_rng(0), new_graph([3, 4])
    sides = []
    for side, (widths, axis) in enumerate(zip(sizes, axes, strict=True)):
        parts = [
            g.op(
                "MatMul",
                g.x,
                g.weight(f"w{side}.{i}", random.standard_normal((4, width)).astype(np.float32)),
                shape=[3, width],
            )
            for i, width in enumerate(widths)
        ]
        whole = [3, sum(widths)] if axis == -1 else [3 * len(widths), widths[0]]
        sides.append(g.op("Concat", *parts, shape=whole, axis=axis))
    gate, up = sides
    silu = g.op("Mul", gate, g.op("Sigmoid", gate, shape=gate.shape), shape=gate.shape)
    return g.finish(g.op("Mul", silu, up, shape=gate.shape), opset=21)


@pytest.mark.parametrize("widths, axis", [((2, 5, 1), -1), ((4,), -1), ((3, 3), 0)])
def test_the_numbers_stay_and_one_concat_is_left(
    widths: tuple[int, ...], axis: int, new_graph: Any, run: Any, counts: Any
) -> None:
    x = np.random.default_rng(1).standard_normal((3, 4), np.float32)
    model = gated(new_graph, (widths, widths), (axis, axis))
    expected = run(model, {"x": x})[0]
    assert DelayConcat()(model).modified
    assert counts(model) == {
        "MatMul": 2 * len(widths),
        "Sigmoid": len(widths),
        "Mul": 2 * len(widths),
        "Concat": 1,
    }
    np.testing.assert_array_equal(run(model, {"x": x})[0], expected)


def test_parts_of_other_sizes_stay(new_graph: Any, run: Any, counts: Any) -> None:
    """The gate's own Sigmoid takes its parts; the last product cannot."""
    x = np.random.default_rng(1).standard_normal((3, 4), np.float32)
    model = gated(new_graph, ((2, 4), (4, 2)), (-1, -1))
    expected = run(model, {"x": x})[0]
    DelayConcat()(model)
    assert counts(model) == {"MatMul": 4, "Sigmoid": 2, "Mul": 3, "Concat": 2}
    np.testing.assert_array_equal(run(model, {"x": x})[0], expected)


def test_a_product_with_something_else_stays(case: Any, new_graph: Any, assert_unchanged: Any) -> None:
    g = new_graph([3, 4])
    whole = g.op("Concat", g.x, g.x, shape=[3, 8], axis=-1)
    model = g.finish(
        g.op("Mul", whole, g.weight("step", np.ones((3, 1), np.float32)), shape=[3, 8]), opset=21
    )
    assert_unchanged(DelayConcat(), model)
    assert_unchanged(DelayConcat(), case.model())
