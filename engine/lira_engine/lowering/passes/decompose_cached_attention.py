"""`lira.CachedAttention` in operators that every ONNX runtime has."""

from __future__ import annotations

import onnx_ir as ir

from lira_engine.lowering.attention import Fused, none_fused
from lira_engine.lowering.function_body import CACHED_ATTENTION_INPUTS, FunctionBody
from lira_engine.lowering.function_calls import CACHED_ATTENTION, cache_shape, calls_of


class DecomposeCachedAttention(ir.passes.InPlacePass):
    """Products, softmax and a scattered cache update, where no fused operator takes the sizes.

    Requires: calls of `lira.CachedAttention` with static head counts and sizes.
    Does: gives each size a function with another body: no `Attention` or `RotaryEmbedding`, and no
        `TensorScatter` unless it is wanted. `ScatterElements` writes the new rows instead; where past and
        present share a buffer it copies nothing else.
    Ensures: the bodies need opset 18 only, 24 with `TensorScatter`. The calls stay; inlining puts the bodies
        in their places.
    """

    def __init__(self, fused: Fused = none_fused, tensor_scatter: bool = False) -> None:
        """`fused`: the calls that stay as they are. `tensor_scatter`: keep the operator that updates a cache
        where it is."""
        super().__init__()
        self.fused = fused
        self.tensor_scatter = tensor_scatter

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified, opset = False, model.opset_imports[""]
        for call in calls_of(model, CACHED_ATTENTION):
            heads = call.attributes["num_heads"].as_int()
            sizes = heads, *cache_shape(call)
            if self.fused(heads, sizes[-1]):
                continue
            overload = "decomposed_" + "_".join(map(str, sizes))
            identifier = (*CACHED_ATTENTION, overload)
            if identifier not in model.functions:
                model.functions[identifier] = decomposed(*sizes, overload, opset, self.tensor_scatter)
            call.overload = overload
            modified = True
        return ir.passes.PassResult(model, modified)


def decomposed(
    num_heads: int,
    num_kv_heads: int,
    capacity: int,
    head_dim: int,
    overload: str,
    opset: int,
    tensor_scatter: bool,
) -> ir.Function:
    """The function with the inputs and outputs of `lira.CachedAttention`, in operators of opset 18 and, if
    wanted, `TensorScatter`."""
    body = FunctionBody(*CACHED_ATTENTION_INPUTS)
    query, key, value, key_cache, value_cache, position, positions, cos_cache, sin_cache = body.inputs
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
        if tensor_scatter:
            return body.op("TensorScatter", cache, new, position, name=name, axis=-2)
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
