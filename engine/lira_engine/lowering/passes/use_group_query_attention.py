"""`lira.CachedAttention` becomes ONNX Runtime's `GroupQueryAttention`."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from lira_engine.engines.llm_tensors import POSITION, SEQLENS, TOTAL
from lira_engine.lowering.function_calls import CACHED_ATTENTION, cached_attention_of, calls_of
from lira_engine.lowering.nodes import CONTRIB, constant_vector, replace_node

# The operator's own condition for do_rotary (group_query_attention_helper.h).
ROTATES_MULTIPLES_OF = 16


class UseGroupQueryAttention(ir.passes.InPlacePass):
    """One node per layer that rotates, updates the cache in place, and attends.

    Requires: calls of `lira.CachedAttention` with static head counts and sizes.
    Does: replaces each by `com.microsoft.GroupQueryAttention` with do_rotary. Caches keep their names and
        shapes; where a session binds past and present to one buffer, nothing of the cache is copied. Calls
        whose head size is not a multiple of 16 stay: the operator refuses to rotate them.
        `lengths_as_inputs`: the two lengths that the operator reads are inputs of the graph, and `position`
        is none where nothing else reads it. The operator reads one of them on the CPU and one on the device:
        computed in the graph, the latter is copied to the device in each pass, and no pass can be captured.
    Ensures: no call with a head size that the operator takes.
    """

    def __init__(self, lengths_as_inputs: bool = False) -> None:
        super().__init__()
        self.lengths_as_inputs = lengths_as_inputs

    def requires(self, model: ir.Model) -> None:
        for call in calls_of(model, CACHED_ATTENTION):
            cached_attention_of(call)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        lengths: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        modified = False
        for call in calls_of(model, CACHED_ATTENTION):
            if not _taken(call):
                continue
            query, key, value, key_cache, value_cache, position, positions, cos_cache, sin_cache = call.inputs
            assert query is not None and position is not None and positions is not None
            if positions not in lengths:  # the same for all layers
                lengths[positions] = (
                    _given_lengths(model.graph)
                    if self.lengths_as_inputs
                    else _lengths(model.graph, call, query, position)
                )
            last, total = lengths[positions]
            attention = ir.node(
                "GroupQueryAttention",
                [query, key, value, key_cache, value_cache, last, total, cos_cache, sin_cache],
                {
                    "num_heads": call.attributes["num_heads"].as_int(),
                    "kv_num_heads": call.attributes["num_kv_heads"].as_int(),
                    "do_rotary": 1,
                },
                domain=CONTRIB,
                num_outputs=3,
                name=call.name,
            )
            replace_node(model.graph, call, [attention], attention.outputs)
            modified = True
        if modified:
            model.graph.opset_imports[CONTRIB] = 1
            if self.lengths_as_inputs:
                _drop_position(model)
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        for call in calls_of(model, CACHED_ATTENTION):
            if _taken(call):
                raise ir.passes.PostconditionError(f"{call.name} was not replaced")


def _taken(call: ir.Node) -> bool:
    """Return whether the operator takes the head size of a call."""
    return cached_attention_of(call).head_size % ROTATES_MULTIPLES_OF == 0


def _lengths(
    graph: ir.Graph, before: ir.Node, query: ir.Value, position: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Return seqlens_k [1] (the last filled row of the cache) and total_sequence_length [1], int32."""
    tape = ir.tape.Tape()
    one = constant_vector(tape, [1])
    rows = tape.op("Shape", [query], {"start": 1, "end": 2})
    filled = tape.op("Add", [position, rows])
    total = tape.op("Cast", [filled], {"to": ir.DataType.INT32}, output=ir.val(TOTAL))
    before_last = tape.op("Sub", [filled, one])
    last = tape.op("Cast", [before_last], {"to": ir.DataType.INT32}, output=ir.val(SEQLENS))
    graph.insert_before(before, tape.nodes)
    return last, total


def _given_lengths(graph: ir.Graph) -> tuple[ir.Value, ir.Value]:
    """As `_lengths`, as inputs of the graph."""
    last, total = (ir.val(name, dtype=ir.DataType.INT32, shape=ir.Shape([1])) for name in (SEQLENS, TOTAL))
    graph.inputs.extend([last, total])
    return last, total


def _drop_position(model: ir.Model) -> None:
    """Remove the input `position` if the graph computes nothing from it."""
    common.RemoveUnusedNodesPass()(model)
    for value in list(model.graph.inputs):
        if value.name == POSITION and not value.uses():
            model.graph.inputs.remove(value)
