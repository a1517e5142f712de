"""The layout of residual sums."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from lira_engine.lowering.passes.keep_channels_last import KeepChannelsLast
from lira_engine.lowering.pipeline import apply

C, SIDE = 6, 4
FIRST, LAST = [1, C, SIDE, SIDE], [1, SIDE, SIDE, C]


def trunk(new_graph: Any, matrix: Any, blocks: int = 3) -> ir.Model:
    """x [1,C,4,4] -> ConvNeXt blocks without norms, then a norm of the channels."""
    g = new_graph(FIRST)
    x = g.x
    for i in range(blocks):
        kernel = g.weight(f"kernel.{i}", matrix(C, 9).reshape(C, 1, 3, 3))
        y = g.op("Conv", x, kernel, group=C, pads=[1, 1, 1, 1], shape=FIRST)
        y = g.op("Transpose", y, perm=[0, 2, 3, 1], shape=LAST)
        y = g.op("Sigmoid", g.op("MatMul", y, g.weight(f"w.{i}", matrix(C, C)), shape=LAST), shape=LAST)
        y = g.op("Transpose", y, perm=[0, 3, 1, 2], shape=FIRST)
        x = g.op("Add", *((x, y) if i % 2 else (y, x)), shape=FIRST)
    y = g.op("Transpose", x, perm=[0, 2, 3, 1], shape=LAST)
    scale = g.weight("scale", np.linspace(1, 2, C).astype(np.float32))
    return g.finish(g.op("LayerNormalization", y, scale, shape=LAST), opset=21)


def test_blocks_transpose_once_each_way_bit_for_bit(
    new_graph: Any, matrix: Any, run: Any, counts: Any
) -> None:
    x = np.random.default_rng(0).standard_normal(FIRST, dtype=np.float32)
    model = trunk(new_graph, matrix)
    with pytest.raises(ir.passes.PostconditionError, match="adds a transposed value"):
        KeepChannelsLast().ensures(model)
    expected = run(trunk(new_graph, matrix), {"x": x})[0]
    model = apply(model, [KeepChannelsLast(), common.RemoveUnusedNodesPass()])
    # Into the first block's sum and out of each block's convolution; into each other convolution.
    assert counts(model)["Transpose"] == 1 + 3 + 2
    assert [list(node.outputs[0].shape) for node in model.graph if node.op_type == "Add"] == [LAST] * 3
    np.testing.assert_array_equal(run(model, {"x": x})[0], expected)


def test_sums_in_one_layout_stay(new_graph: Any, assert_unchanged: Any) -> None:
    g = new_graph(FIRST)
    total = g.op("Add", g.x, g.op("Relu", g.x, shape=FIRST), shape=FIRST)
    assert_unchanged(KeepChannelsLast(), g.finish(total, opset=21))


def test_a_bias_stays(new_graph: Any, assert_unchanged: Any) -> None:
    g = new_graph(LAST)
    y = g.op("Transpose", g.x, perm=[0, 3, 1, 2], shape=FIRST)
    total = g.op("Add", y, g.weight("bias", np.ones((C, 1, 1), np.float32)), shape=FIRST)
    assert_unchanged(KeepChannelsLast(), g.finish(total, opset=21))
