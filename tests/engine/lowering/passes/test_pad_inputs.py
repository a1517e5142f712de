"""Zeros up to whole blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.engines.accuracy import relative_error
from lira_engine.lowering.passes.pad_inputs import PadInputs
from lira_engine.lowering.weights import constant_matmuls

pytestmark = pytest.mark.portable
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(3,), (1, 3), (1, 2, 3)])
def test_the_result_stays_the_same(
    shape: tuple[int, ...], dtype: str, new_graph: Any, run: Any, matrix: Any, counts: Any, values: Any
) -> None:
    """Of two matmuls with one weight, too."""
    g = new_graph([*shape, 24])
    w = matrix(24, 24).astype(dtype)
    right = g.weight("w", w)
    if dtype != "float32":
        right = g.op("Cast", right, shape=[24, 24], to=ir.DataType.FLOAT)
    once = g.op("MatMul", g.x, right, shape=[*shape, 24])
    model = g.finish(g.op("MatMul", once, right, shape=[*shape, 24]))
    x = RANDOM.normal(size=(*shape, 24)).astype(np.float32)
    before = run(model, {"x": x})[0]
    PadInputs({"w": 32}.get)(model)
    assert counts(model)["Pad"] == 2 and values(model, "w").shape == (32, 24)
    assert [(one.name, one.inputs) for one in constant_matmuls(model.graph)] == [("w", 32)] * 2
    assert relative_error(run(model, {"x": x})[0], before) < 1e-6


@pytest.mark.parametrize("block", [None, 8])
def test_whole_blocks_stay(block: int | None, new_graph: Any, matrix: Any, assert_unchanged: Any) -> None:
    g = new_graph([2, 24])
    model = g.finish(g.op("MatMul", g.x, g.weight("w", matrix(24, 2)), shape=[2, 2]))
    assert_unchanged(PadInputs(lambda name: block), model)
    with pytest.raises(ir.passes.PostconditionError, match="w was not padded"):
        PadInputs(lambda name: 16).ensures(model)


def test_another_reader_of_the_weight_and_an_unknown_rank_are_refused(new_graph: Any, matrix: Any) -> None:
    g = new_graph([2, 24])
    w = g.weight("w", matrix(24, 2))
    joined = g.op("Concat", g.op("MatMul", g.x, w, shape=[2, 2]), w, shape=[26, 2], axis=0)
    with pytest.raises(ir.passes.PreconditionError, match=r"Concat.* reads w, which is to be padded"):
        PadInputs(lambda name: 16)(g.finish(joined))
    g = new_graph([2, 24])
    w = g.weight("w", matrix(24, 2))
    left = g.op("MatMul", w, g.op("MatMul", g.x, w, shape=[2, 2]), shape=[24, 2])  # its rows are no inputs
    with pytest.raises(ir.passes.PreconditionError, match=r"MatMul.* reads w, which is to be padded"):
        PadInputs(lambda name: 16)(g.finish(left))
    g = new_graph([2, 24])
    model = g.finish(g.op("MatMul", g.op("Neg", g.x), g.weight("w", matrix(24, 2)), shape=[2, 2]))
    with pytest.raises(ir.passes.PreconditionError, match="the rank of its input is not known"):
        PadInputs(lambda name: 16)(model)
