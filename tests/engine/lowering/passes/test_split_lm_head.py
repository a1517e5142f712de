"""The LM head in parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from lira_engine.engines.accuracy import relative_error
from lira_engine.lowering.passes.split_lm_head import SplitLmHead
from lira_engine.lowering.pipeline import apply

pytestmark = pytest.mark.portable
FLOAT = ir.DataType.FLOAT
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_lm_head_in_parts_gives_the_same_logits(
    dtype: str, new_graph: Any, run: Any, counts: Any, matrix: Any, values: Any
) -> None:
    head = matrix(16, 29).astype(dtype)
    g = new_graph([1, 3, 16])
    right = g.weight("lm_head", head)
    if dtype == "float16":
        right = g.op("Cast", right, to=FLOAT)
    passes = [SplitLmHead(4), common.RemoveUnusedNodesPass()]
    model = apply(g.finish(g.op("MatMul", g.x, right, shape=[1, 3, 29])), passes)
    x = RANDOM.normal(size=(1, 3, 16)).astype(np.float32)
    assert counts(model)["MatMul"] == 4
    assert max(value.shape[1] for value in model.graph.initializers.values()) == 8  # type: ignore[index, type-var]
    assert relative_error(run(model, {"x": x})[0], x @ head.astype(np.float32)) < 1e-6


def test_one_part_and_other_weights_stay(new_graph: Any, matrix: Any, assert_unchanged: Any) -> None:
    g = new_graph([1, 16])
    head = g.finish(g.op("MatMul", g.x, g.weight("lm_head", matrix(16, 29)), shape=[1, 29]))
    assert_unchanged(SplitLmHead(1), head)
    assert_unchanged(SplitLmHead(4, name="another"), head)
    with pytest.raises(ir.passes.PostconditionError, match="the matmul with lm_head was not replaced"):
        SplitLmHead(4).ensures(head)


def test_refuses_two_heads_and_more_parts_than_columns(new_graph: Any, matrix: Any) -> None:
    g = new_graph([1, 16])
    head = g.weight("lm_head", matrix(16, 16))
    model = g.finish(g.op("MatMul", g.op("MatMul", g.x, head, shape=[1, 16]), head, shape=[1, 16]))
    with pytest.raises(ir.passes.PreconditionError, match="two matmuls read lm_head"):
        SplitLmHead(4)(model)
    g = new_graph([1, 16])
    single = g.finish(g.op("MatMul", g.x, g.weight("lm_head", matrix(16, 16)), shape=[1, 16]))
    with pytest.raises(ir.passes.PreconditionError, match="lm_head has 16 columns, expected at least 17"):
        SplitLmHead(17)(single)
