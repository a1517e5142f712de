"""Constants in short rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.lowering.passes import expand_constants
from lira_engine.lowering.passes.expand_constants import ExpandConstants
from lira_engine.lowering.pipeline import apply

SHAPE = [1, 90, 8, 3, 4, 2]
"""Sampling points: rows, heads, levels, points, coordinates."""


def model(new_graph: Any, constant: np.ndarray, shape: list[int | str], op: str = "Mul") -> ir.Model:
    g = new_graph(shape)
    return g.finish(g.op(op, g.weight("c", constant), g.x, shape=shape), opset=21)


@pytest.mark.parametrize("op", ["Add", "Mul"])
@pytest.mark.parametrize(
    "constant, written",
    [((3, 1, 2), (8, 3, 4, 2)), ((90, 1, 1, 1, 2), (90, 8, 3, 4, 2)), ((2,), (8, 3, 4, 2))],
    ids=["scales of levels", "centres of rows", "coordinates"],
)
def test_results_stay_bit_for_bit(
    op: str, constant: tuple[int, ...], written: tuple[int, ...], new_graph: Any, run: Any
) -> None:
    random = np.random.default_rng(0)
    c, x = (random.standard_normal(shape, dtype=np.float32) for shape in (constant, SHAPE))
    before = model(new_graph, c, SHAPE, op)
    with pytest.raises(ir.passes.PostconditionError, match="still broadcasts a constant in short rows"):
        ExpandConstants().ensures(before)
    expected = run(before, {"x": x})[0]
    after = apply(model(new_graph, c, SHAPE, op), [ExpandConstants()])
    (read,) = (value for value in after.graph.node(0).inputs if value is not None and value.is_initializer())
    assert tuple(read.shape or ()) == written
    np.testing.assert_array_equal(run(after, {"x": x})[0], expected)


@pytest.mark.parametrize(
    "constant, shape",
    [
        ((8, 3, 4, 2), SHAPE),
        ((16,), [1, 1024, 16]),
        ((), SHAPE),
        ((1,), SHAPE),
        ((9000, 1, 2), [1, 9000, "points", 2]),
        ((192, 1, 1), [1, 192, 16, 16]),
        ((2,), [1, 90, 2]),
    ],
    ids=[
        "long rows",
        "a bias",
        "a scalar",
        "one element",
        "an unknown size",
        "a channel's scale",
        "few elements",
    ],
)
def test_others_stay(
    constant: tuple[int, ...], shape: list[int | str], new_graph: Any, assert_unchanged: Any
) -> None:
    assert_unchanged(ExpandConstants(), model(new_graph, np.ones(constant, np.float32), shape))


def test_large_ones_stay(new_graph: Any, assert_unchanged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expand_constants, "LARGEST", 4 * 90 * 192 - 1)
    assert_unchanged(ExpandConstants(), model(new_graph, np.ones((90, 1, 1, 1, 2), np.float32), SHAPE))


def test_one_constant_of_two_nodes_is_written_once(new_graph: Any) -> None:
    g = new_graph(SHAPE)
    c = g.weight("c", np.ones((3, 1, 2), np.float32))
    y = g.op("Add", g.op("Mul", g.x, c, shape=SHAPE), c, shape=SHAPE)
    after = apply(g.finish(y, opset=21), [ExpandConstants()])
    assert set(after.graph.initializers) == {"c", "c.8x3x4x2"}
