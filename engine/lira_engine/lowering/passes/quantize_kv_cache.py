"""`GroupQueryAttention` reads and writes KV caches of 8-bit integers."""

from __future__ import annotations

import onnx_ir as ir

from lira_engine.engines.llm_tensors import cache_scales, is_cache, is_cache_input
from lira_engine.lowering.nodes import CONTRIB, nodes_of

_CACHES, _SCALES = (3, 4), (12, 13)
"""Inputs of the operator: caches of keys and values, and their scales."""


class QuantizeKvCache(ir.passes.InPlacePass):
    """A decode step, which reads all rows of the caches, reads a quarter of the bytes.

    Requires: every cache is one of a `GroupQueryAttention`.
    Does: caches become int8, and each gets an input of scales [KV heads x head size] float32, one for each
        channel: integer times scale is the number. The operator rounds what it writes, and clips it to
        -128 to 127. It rotates keys before.
    Ensures: no float cache. ONNX Runtime runs the graph from 1.27 on.
    """

    mend = "leave out --kv-cache int8"

    def requires(self, model: ir.Model) -> None:
        for value in model.graph.inputs:
            if is_cache_input(str(value.name)) and any(
                (use.node.domain, use.node.op_type) != (CONTRIB, "GroupQueryAttention")
                for use in value.uses()
            ):
                assert value.shape is not None
                raise ir.passes.PreconditionError(
                    f"heads have {value.shape[3]} columns, expected a multiple of 16"
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for attention in nodes_of(model, "GroupQueryAttention", domain=CONTRIB):
            if "kv_cache_bit_width" in attention.attributes:
                continue
            attention.resize_inputs(_SCALES[-1] + 1)
            for cache, scales in zip(_CACHES, _SCALES, strict=True):
                attention.replace_input_with(scales, _scales_of(model.graph, attention.inputs[cache]))
            for name in ("k_quant_type", "v_quant_type"):
                attention.attributes[name] = ir.AttrString(name, "PER_CHANNEL")
            attention.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
            modified = True
        for value in (*model.graph.inputs, *model.graph.outputs):
            if is_cache(str(value.name)):
                value.type = ir.TensorType(ir.DataType.INT8)
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        for attention in nodes_of(model, "GroupQueryAttention", domain=CONTRIB):
            if any(attention.inputs[i].dtype != ir.DataType.INT8 for i in _CACHES):  # type: ignore[union-attr]
                raise ir.passes.PostconditionError(f"{attention.name} has a float cache")


def _scales_of(graph: ir.Graph, cache: ir.Value | None) -> ir.Value:
    """Return a new graph input: the scales of a cache [1, KV heads, N, head size]."""
    assert cache is not None and cache.name is not None and cache.shape is not None
    _, heads, _, columns = (int(size) for size in cache.shape)  # type: ignore[arg-type]
    scales = ir.val(cache_scales(cache.name), dtype=ir.DataType.FLOAT, shape=[heads * columns])
    graph.inputs.append(scales)
    return scales
