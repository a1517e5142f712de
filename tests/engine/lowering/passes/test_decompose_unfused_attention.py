"""Attention where there is no fused kernel."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from lira_engine.lowering.passes.decompose_unfused_attention import DecomposeUnfusedAttention


def fused(heads: int, head_size: int) -> bool:
    return (heads, head_size) == (2, 8)


def test_only_unfused_attention_is_decomposed(new_graph: Any, counts: Any, assert_unchanged: Any) -> None:
    for head_size, stays in ((8, True), (6, False)):
        shape = [1, 2, 5, head_size]
        g = new_graph(shape)
        model = g.finish(g.op("Attention", g.x, g.x, g.x, shape=shape))
        if stays:
            assert_unchanged(DecomposeUnfusedAttention(fused), model)
        else:
            with pytest.raises(ir.passes.PostconditionError, match="has no fused kernel and is left"):
                DecomposeUnfusedAttention(fused).ensures(model)
            assert DecomposeUnfusedAttention(fused)(model).modified
        assert bool(counts(model)["Attention"]) == stays and bool(counts(model)["Softmax"]) != stays


def test_fused_attention_may_be_more_than_plain(new_graph: Any, assert_unchanged: Any) -> None:
    """It stays as it is; without a fused kernel it is refused."""
    shape = [1, 2, 5, 8]
    g = new_graph(shape)
    model = g.finish(g.op("Attention", g.x, g.x, g.x, shape=shape, is_causal=1))
    assert_unchanged(DecomposeUnfusedAttention(fused), model)
    with pytest.raises(ir.passes.PreconditionError, match="more than plain attention"):
        DecomposeUnfusedAttention(lambda heads, head_size: False)(model)


def test_refuses_attention_of_unknown_size(new_graph: Any) -> None:
    g = new_graph([1, "H", 5, 8])
    with pytest.raises(ir.passes.PreconditionError, match="one static number of heads"):
        DecomposeUnfusedAttention(fused)(g.finish(g.op("Attention", g.x, g.x, g.x)))
