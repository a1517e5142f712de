"""`lira.CachedAttention` in operators that every ONNX runtime has."""

from __future__ import annotations

import onnx_ir as ir

from lira_engine.function_body import CACHED_ATTENTION_INPUTS, FunctionBody
from lira_engine.passes.calls import CACHED_ATTENTION, cache_shape, calls_of


class DecomposeCachedAttention(ir.passes.InPlacePass):
    """Products, softmax and a scattered cache update, where no fused operator takes the sizes.

    Requires: calls of `lira.CachedAttention` with static head counts and sizes.
    Does: gives each size a function with another body: no `TensorScatter`, `Attention` or `RotaryEmbedding`.
        `ScatterElements` writes the new rows; where past and present share a buffer it copies nothing else.
    Ensures: the bodies need opset 18 only. The calls stay; inlining puts the bodies in their places.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        calls = calls_of(model, CACHED_ATTENTION)
        opset = model.opset_imports[""]
        for call in calls:
            heads = call.attributes["num_heads"].as_int()
            sizes = heads, *cache_shape(call)
            overload = "decomposed_" + "_".join(map(str, sizes))
            identifier = (*CACHED_ATTENTION, overload)
            if identifier not in model.functions:
                model.functions[identifier] = decomposed(*sizes, overload, opset)
            call.overload = overload
        return ir.passes.PassResult(model, bool(calls))


def decomposed(
    num_heads: int, num_kv_heads: int, capacity: int, head_dim: int, overload: str, opset: int
) -> ir.Function:
    """The function with the inputs and outputs of `lira.CachedAttention`, in operators of opset 18."""
    body = FunctionBody(*CACHED_ATTENTION_INPUTS)
    query, key, value, key_cache, value_cache, _, positions, cos_cache, sin_cache = body.inputs
    half = head_dim // 2
    cos, sin = (body.op("Gather", table, positions) for table in (cos_cache, sin_cache))  # [1, S, D/2]
    column = body.op("Unsqueeze", positions, body.constant([1, 3]))  # [1, 1, S, 1]
    slots = body.op("Range", body.constant(0), body.constant(capacity), body.constant(1))
    visible = body.op("LessOrEqual", slots, column)  # [1, 1, S, N]

    def split_heads(x: ir.Value, heads: int) -> ir.Value:
        rows_first = body.op("Reshape", x, body.constant([1, -1, heads, head_dim]))
        return body.op("Transpose", rows_first, perm=[0, 2, 1, 3])  # [1, heads, S, D]

    def rotate(x: ir.Value) -> ir.Value:
        a, b = body.split(x, [half, half], axis=-1)
        first = body.op("Sub", body.op("Mul", a, cos), body.op("Mul", b, sin))
        second = body.op("Add", body.op("Mul", b, cos), body.op("Mul", a, sin))
        return body.op("Concat", first, second, axis=-1)

    def store(cache: ir.Value, new: ir.Value, name: str) -> ir.Value:
        indices = body.op("Expand", column, body.op("Shape", new))
        return body.op("ScatterElements", cache, indices, new, name=name, axis=2)

    keys = store(key_cache, rotate(split_heads(key, num_kv_heads)), "key_cache_out")  # [1, KV, N, D]
    values = store(value_cache, split_heads(value, num_kv_heads), "value_cache_out")

    scale = body.constant_like(query, head_dim**-0.5)
    scaled = body.op("Mul", rotate(split_heads(query, num_heads)), scale)
    # Query heads of one KV head side by side, [1, KV, H/KV, S, D]: keys and values are shared, not repeated.
    grouped = body.op(
        "Reshape", scaled, body.constant([1, num_kv_heads, num_heads // num_kv_heads, -1, head_dim])
    )
    columns = body.op("Transpose", keys, perm=[0, 1, 3, 2])  # [1, KV, D, N]
    scores = body.op("MatMul", grouped, body.op("Unsqueeze", columns, body.constant([2])))
    masked = body.op("Where", visible, scores, body.constant_like(query, float("-inf")))
    shares = body.op("Softmax", masked, axis=-1)
    summed = body.op("MatMul", shares, body.op("Unsqueeze", values, body.constant([2])))
    heads = body.op("Reshape", summed, body.constant([1, num_heads, -1, head_dim]))
    rows_first = body.op("Transpose", heads, perm=[0, 2, 1, 3])
    merged = body.op("Reshape", rows_first, body.constant([1, -1, num_heads * head_dim]), name="attention")
    attributes = [ir.AttrInt64("num_heads", num_heads), ir.AttrInt64("num_kv_heads", num_kv_heads)]
    return body.function((*CACHED_ATTENTION, overload), [merged, keys, values], attributes, opset)
