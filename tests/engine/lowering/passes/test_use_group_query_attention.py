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


def test_lengths_may_be_inputs(counts: Any, assert_unchanged: Any, small_llm: Any) -> None:
    """Nothing is computed from them, and `position`, of which nothing is, goes."""
    model = small_llm()
    computed = counts(UseGroupQueryAttention()(small_llm()).model)
    assert UseGroupQueryAttention(lengths_as_inputs=True)(model).modified
    inputs = {value.name: value for value in model.graph.inputs}
    assert "position" not in inputs
    for name in ("seqlens_k", "total_sequence_length"):
        assert inputs[name].dtype == ir.DataType.INT32 and inputs[name].shape == [1]
    nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    for node in nodes:
        assert [value.name for value in node.inputs[5:7]] == ["seqlens_k", "total_sequence_length"]
    assert computed["Cast"] - counts(model)["Cast"] == 2 and computed["Shape"] > counts(model)["Shape"]
    assert_unchanged(UseGroupQueryAttention(lengths_as_inputs=True), model)


def test_a_position_that_something_else_reads_stays(small_llm: Any) -> None:
    model = small_llm()
    position = next(value for value in model.graph.inputs if value.name == "position")
    model.graph.append(ir.node("Identity", [position], outputs=[ir.val("copy")]))
    model.graph.outputs.append(next(iter(reversed(model.graph))).outputs[0])
    UseGroupQueryAttention(lengths_as_inputs=True)(model)
    assert position in model.graph.inputs


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
