"""`lira.CachedAttention` gets a body of operators that every ONNX runtime has."""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from lira_engine.lowering.attention import Fused, none_fused
from lira_engine.lowering.function_body import CACHED_ATTENTION_INPUTS, FunctionBody
from lira_engine.lowering.function_calls import (
    CACHED_ATTENTION,
    CachedAttention,
    cached_attention_of,
    calls_of,
    ensure_operators,
    give_body,
)


class DecomposeCachedAttention(ir.passes.InPlacePass):
    """Cached attention in matmuls, softmax and a scattered cache update, where no kernel is fused.

    Requires: calls of `lira.CachedAttention` with static head counts and sizes.
    Does: lets each call whose sizes are not `fused` call another body: without `Attention` and
        `RotaryEmbedding`, and with `ScatterElements` in place of `TensorScatter` unless `tensor_scatter`
        keeps it. Where past and present share a buffer, `ScatterElements` copies only the new rows.
    Ensures: the bodies have none of those operators. They need opset 18, with `TensorScatter` opset 24 (not
        checked). The calls stay; inlining puts the bodies in their places.
    """

    def __init__(self, fused: Fused = none_fused, tensor_scatter: bool = False) -> None:
        super().__init__()
        self.fused = fused
        self.tensor_scatter = tensor_scatter

    def requires(self, model: ir.Model) -> None:
        for call in calls_of(model, CACHED_ATTENTION):
            cached_attention_of(call)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified, opset = False, model.opset_imports[""]
        for call, sizes in self._unfused(model):
            overload = "decomposed_" + "_".join(map(str, sizes))
            write = partial(decomposed, sizes, overload, opset, self.tensor_scatter)
            modified |= give_body(model, call, overload, write)
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        gone = {"Attention", "RotaryEmbedding"} | (set() if self.tensor_scatter else {"TensorScatter"})
        for call, _ in self._unfused(model):
            ensure_operators(model, call, lambda op_type: op_type not in gone)

    def _unfused(self, model: ir.Model) -> list[tuple[ir.Node, CachedAttention]]:
        calls = [(call, cached_attention_of(call)) for call in calls_of(model, CACHED_ATTENTION)]
        return [(call, sizes) for call, sizes in calls if not self.fused(sizes.heads, sizes.head_size)]


def decomposed(sizes: CachedAttention, overload: str, opset: int, tensor_scatter: bool) -> ir.Function:
    """Return a function with the inputs and outputs of `lira.CachedAttention`, in operators of opset 18 and,
    if wanted, `TensorScatter`."""
    num_heads, num_kv_heads, capacity, head_dim = sizes
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
    weights = body.op("Softmax", masked, axis=-1)
    summed = body.op("MatMul", weights, body.op("Unsqueeze", values, body.constant([2])))
    heads = body.op("Reshape", summed, body.constant([1, num_heads, -1, head_dim]))
    rows_first = body.op("Transpose", heads, perm=[0, 2, 1, 3])
    merged = body.op("Reshape", rows_first, body.constant([1, -1, num_heads * head_dim]), name="attention")
    attributes = [ir.AttrInt64("num_heads", num_heads), ir.AttrInt64("num_kv_heads", num_kv_heads)]
    return body.function((*CACHED_ATTENTION, overload), [merged, keys, values], attributes, opset)
