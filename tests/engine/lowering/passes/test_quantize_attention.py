"""Attention in 8-bit integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.lowering.passes.quantize_attention import QuantizeAttention
from lira_engine.lowering.passes.use_dynamic_quantize_matmul import UseDynamicQuantizeMatMul
from lira_engine.lowering.passes.use_multi_head_attention import UseMultiHeadAttention
from lira_engine.lowering.pipeline import apply

HEADS, SIZE, ROWS = 4, 16, 70
WIDTH = HEADS * SIZE


def attention(new_graph: Any, matrix: Any, rows: int | str = ROWS, mask: bool = False) -> ir.Model:
    """x [B,S,64] -> [B,S,64]: self-attention whose query has a weight of its own, as a key and a value."""
    g = new_graph(["B", rows, WIDTH])
    split = g.weight("split", np.array([0, 0, HEADS, SIZE]))
    heads = []
    for name in "qkv":
        made = g.op("MatMul", g.x, g.weight(name, matrix(WIDTH, WIDTH) * 2), shape=["B", rows, WIDTH])
        parts = g.op("Reshape", made, split, shape=["B", rows, HEADS, SIZE])
        heads.append(g.op("Transpose", parts, perm=[0, 2, 1, 3], shape=["B", HEADS, rows, SIZE]))
    masks = [g.weight("mask", np.zeros((ROWS, ROWS), np.float32))] if mask else []
    y = g.op("Attention", *heads, *masks, scale=0.3, shape=["B", HEADS, rows, SIZE])
    y = g.op("Transpose", y, perm=[0, 2, 1, 3], shape=["B", rows, HEADS, SIZE])
    merge = g.weight("merge", np.array([0, 0, WIDTH]))
    return g.finish(g.op("Reshape", y, merge, shape=["B", rows, WIDTH]), opset=23)


PASSES = [UseDynamicQuantizeMatMul(lambda matmul: True), QuantizeAttention(smallest=64)]


@pytest.mark.parametrize("moved", [0.0, 30.0], ids=["centred", "moved"])
def test_the_result_is_that_of_floats(
    moved: float,
    new_graph: Any,
    matrix: Any,
    run: Any,
    counts: Any,
) -> None:
    """Of two images; an input that is far from zero makes keys and values that are."""
    x = np.random.default_rng(0).standard_normal((2, ROWS, WIDTH), dtype=np.float32)
    x[..., 3] += moved
    floats = apply(attention(new_graph, matrix), [PASSES[0], UseMultiHeadAttention()])
    model = apply(attention(new_graph, matrix), PASSES)
    assert counts(model)["Attention"] == 0
    assert counts(model)["Scan"] == 1
    found, expected = run(model, {"x": x})[0], run(floats, {"x": x})[0]
    spread = np.sqrt(((expected - expected.mean(1, keepdims=True)) ** 2).mean())
    assert np.sqrt(((found - expected) ** 2).mean()) < (0.08 if moved else 0.02) * spread


def test_even_attention_keeps_its_small_shares(new_graph: Any, matrix: Any, run: Any) -> None:
    """Every share is 1/70: one step of 1/255 for all rows would round it by a tenth."""
    x = np.random.default_rng(0).standard_normal((1, ROWS, WIDTH), dtype=np.float32)
    model = attention(new_graph, matrix)
    model.graph.node("Attention.10").attributes["scale"] = ir.AttrFloat32("scale", 1e-9)
    model = apply(model, PASSES)
    v = x @ (matrix(WIDTH, WIDTH) * 2)
    found = run(model, {"x": x})[0]
    assert np.abs(found - v.mean(1)).max() < 0.01 * np.abs(v).max()


@pytest.mark.parametrize(
    "why, given, passes",
    [
        ("few rows", {}, [PASSES[0], QuantizeAttention()]),
        ("an unknown number of rows", {"rows": "S"}, PASSES),
        ("a mask", {"mask": True}, PASSES),
        ("a query in floats", {}, PASSES[1:]),
    ],
)
def test_others_stay(
    why: str, given: dict[str, Any], passes: list[Any], new_graph: Any, matrix: Any, assert_unchanged: Any
) -> None:
    model = apply(attention(new_graph, matrix, **given), passes[:-1])
    assert_unchanged(passes[-1], model)
    with pytest.raises(ir.passes.PostconditionError, match="was not replaced"):
        QuantizeAttention(smallest=64).ensures(apply(attention(new_graph, matrix), PASSES[:1]))
