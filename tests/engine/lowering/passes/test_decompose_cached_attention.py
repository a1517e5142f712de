"""Cached attention in basic operators; test_cpu.py compares its results."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from lira_engine.lowering.passes.decompose_cached_attention import DecomposeCachedAttention
from lira_engine.lowering.pipeline import apply


@pytest.mark.parametrize("tensor_scatter", [False, True])
def test_the_cache_is_updated_by_the_operator_that_is_wanted(
    tensor_scatter: bool, counts: Any, assert_unchanged: Any, small_llm: Any
) -> None:
    one = DecomposeCachedAttention(tensor_scatter=tensor_scatter)
    model = apply(small_llm(), [one, common.InlinePass()])
    found = counts(model)
    assert not {"Attention", "RotaryEmbedding", "CachedAttention"} & found.keys()
    assert (found["TensorScatter"], found["ScatterElements"]) == ((4, 0) if tensor_scatter else (0, 4))
    assert_unchanged(one, model)


def test_layers_of_one_size_share_a_body(assert_unchanged: Any, small_llm: Any) -> None:
    model = DecomposeCachedAttention()(small_llm()).model
    overloads = {node.overload for node in model.graph if node.op_type == "CachedAttention"}
    assert overloads == {"decomposed_6_3_32_16"}
    assert [key for key in model.functions if key[2]] == [("lira", "CachedAttention", "decomposed_6_3_32_16")]
    assert_unchanged(DecomposeCachedAttention(), model)


def test_fused_attention_stays(assert_unchanged: Any, small_llm: Any) -> None:
    assert_unchanged(
        DecomposeCachedAttention(lambda heads, head_size: (heads, head_size) == (6, 16)), small_llm()
    )


def test_refuses_a_cache_of_unknown_shape(small_llm: Any) -> None:
    model = small_llm()
    call = next(node for node in model.graph if node.op_type == "CachedAttention")
    call.inputs[3].shape = ir.Shape([1, 3, "N", 16])
    with pytest.raises(ir.passes.PreconditionError, match="the shape of its key cache"):
        DecomposeCachedAttention()(model)


def test_a_body_that_is_missing_or_wrong_is_noticed(small_llm: Any) -> None:
    model = small_llm()
    with pytest.raises(
        ir.passes.PostconditionError, match=r"has a (RotaryEmbedding|TensorScatter|Attention)"
    ):
        DecomposeCachedAttention().ensures(model)
    model.functions.clear()
    with pytest.raises(ir.passes.PostconditionError, match="calls CachedAttention, which has no body"):
        DecomposeCachedAttention().ensures(model)
