"""Cached attention in one node; test_cpu.py compares its results."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from lira_engine.lowering.passes.use_group_query_attention import UseGroupQueryAttention


def test_each_layer_becomes_one_node(counts: Any, assert_unchanged: Any, small_llm: Any) -> None:
    model = small_llm()
    with pytest.raises(ir.passes.PostconditionError, match="was not replaced"):
        UseGroupQueryAttention().ensures(model)
    assert UseGroupQueryAttention()(model).modified
    found = counts(model)
    assert found["GroupQueryAttention"] == 2 and not found["CachedAttention"]
    nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    assert nodes[0].inputs[5:7] == nodes[1].inputs[5:7]  # layers share the lengths
    assert (nodes[0].attributes["num_heads"].as_int(), nodes[0].attributes["kv_num_heads"].as_int()) == (6, 3)
    assert_unchanged(UseGroupQueryAttention(), model)


def test_head_sizes_that_the_operator_refuses_stay(assert_unchanged: Any, small_llm: Any) -> None:
    assert_unchanged(UseGroupQueryAttention(), small_llm(head_size=8))


def test_refuses_a_cache_of_unknown_shape(small_llm: Any) -> None:
    model = small_llm()
    call = next(node for node in model.graph if node.op_type == "CachedAttention")
    call.inputs[3].shape = ir.Shape([1, 3, "N", 16])
    with pytest.raises(ir.passes.PreconditionError, match="the shape of its key cache"):
        UseGroupQueryAttention()(model)


def test_refuses_heads_that_contradict_the_cache(small_llm: Any) -> None:
    model = small_llm()
    call = next(node for node in model.graph if node.op_type == "CachedAttention")
    call.attributes["num_kv_heads"] = ir.AttrInt64("num_kv_heads", 2)
    with pytest.raises(ir.passes.PreconditionError, match=r"num_kv_heads and the shape .* differ"):
        UseGroupQueryAttention()(model)
