"""ONNX functions of the portable graphs, which engines may replace as a whole.

A call is one node of domain "lira". The body says what it means in standard operators. Sizes are part of the
body: a model has one function for each size, with an overload of its own.

=========================  =====================================  ==========================================
CachedAttention            one layer's attention, cache updated    GroupQueryAttention in ONNX Runtime
DeformableSampling         multi-scale bilinear sampling           GridSample, gathers or a plugin
=========================  =====================================  ==========================================
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from lira_engine.lowering.function_body import CACHED_ATTENTION_INPUTS, FunctionBody

DOMAIN = "lira"
DOMAIN_VERSION = 1
OPSET = 24  # the first one with TensorScatter


def cached_attention(
    num_heads: int, num_kv_heads: int, head_dim: int, capacity: int, opset: int = OPSET
) -> ir.Function:
    """``lira.CachedAttention``: rotary embedding, cache update and causal attention of S new positions.

    Inputs: query [1,S,H*D], key and value [1,S,KV*D] (not rotated), key_cache and value_cache [1,KV,N,D] of
    which the first ``position`` rows are filled, position [1] int64, positions [1,S] int64 (``position`` and
    those after it), cos_cache and sin_cache [N,D/2]. Needs position + S <= N = ``capacity``. Query head h
    reads KV head h // (H / KV); rotation is rotate-half; scale is D ** -0.5.

    Outputs: attention [1,S,H*D] and the caches with rows position .. position + S - 1 written.

    A call carries ``num_heads`` and ``num_kv_heads`` as attributes, for the passes that replace it; the body
    has them built in. The mask is explicit because TensorRT's parser needs that. It depends on ``positions``
    only: after inlining, layers share one mask.
    """
    body = FunctionBody(*CACHED_ATTENTION_INPUTS)
    query, key, value, key_cache, value_cache, position, positions, cos_cache, sin_cache = body.inputs
    slots = body.op("Range", body.constant(0), body.constant(capacity), body.constant(1))
    rows = body.op("Unsqueeze", positions, body.constant([1, 3]))  # [1, 1, S, 1]
    visible = body.op("LessOrEqual", slots, rows)  # [1, 1, S, N]: slots up to the row's own

    def split_heads(x: ir.Value, heads: int) -> ir.Value:
        rows_first = body.op("Reshape", x, body.constant([1, -1, heads, head_dim]))
        return body.op("Transpose", rows_first, perm=[0, 2, 1, 3])

    def rotate(x: ir.Value) -> ir.Value:
        return body.op("RotaryEmbedding", x, cos_cache, sin_cache, positions)

    def store(cache: ir.Value, rows: ir.Value, name: str) -> ir.Value:
        return body.op("TensorScatter", cache, rows, position, name=name, axis=-2)

    keys = store(key_cache, rotate(split_heads(key, num_kv_heads)), "key_cache_out")  # [1, KV, N, D]
    values = store(value_cache, split_heads(value, num_kv_heads), "value_cache_out")
    heads = body.op("Attention", rotate(split_heads(query, num_heads)), keys, values, visible)  # [1, H, S, D]
    rows_first = body.op("Transpose", heads, perm=[0, 2, 1, 3])
    merged = body.op("Reshape", rows_first, body.constant([1, -1, num_heads * head_dim]), name="attention")
    attributes = [ir.AttrInt64("num_heads", num_heads), ir.AttrInt64("num_kv_heads", num_kv_heads)]
    return body.function((DOMAIN, "CachedAttention", ""), [merged, keys, values], attributes, opset)


def deformable_sampling(
    level_shapes: Sequence[tuple[int, int]],
    num_heads: int,
    head_dim: int,
    num_points: int,
    overload: str = "",
    opset: int = OPSET,
) -> ir.Function:
    """``lira.DeformableSampling``: bilinear samples of several feature maps, weighted and summed.

    Inputs: value [1,L,H,d] (levels of ``level_shapes`` (height, width) one after the other, row-major, L
    pixels in all), locations [1,Q,H,levels,points,2] as (x, y) where 0 and 1 are a map's outer edges, weights
    [1,Q,H,levels,points]. Samples outside a map are zero, pixel centres are at half (mmcv
    ``multi_scale_deformable_attn_pytorch``).

    Output: [1,Q,H*d]. Attribute ``level_shapes`` [h0, w0, h1, w1, ...] is for the passes that replace a call;
    the function has its default.
    """
    body = FunctionBody("value", "locations", "weights")
    value, locations, weights = body.inputs
    levels, sizes = len(level_shapes), [h * w for h, w in level_shapes]

    channels_first = body.op("Transpose", value, perm=[0, 2, 3, 1])  # [1, H, d, L]
    maps = body.split(channels_first, sizes, axis=3)
    grid = body.op(  # -1 and 1 are a map's outer edges
        "Sub",
        body.op("Mul", locations, body.constant_like(locations, 2.0)),
        body.constant_like(locations, 1.0),
    )
    by_level = body.op("Transpose", grid, perm=[0, 3, 2, 1, 4, 5])  # [1, levels, H, Q, points, 2]
    grids = body.split(by_level, [1] * levels, axis=1)
    by_head = body.op("Transpose", weights, perm=[0, 2, 1, 3, 4])  # [1, H, Q, levels, points]
    level_weights = body.split(by_head, [1] * levels, axis=3)

    total: ir.Value | None = None
    for (height, width), pixels, points, share in zip(level_shapes, maps, grids, level_weights, strict=True):
        image = body.op("Reshape", pixels, body.constant([num_heads, head_dim, height, width]))
        where = body.op("Reshape", points, body.constant([num_heads, -1, num_points, 2]))
        how_much = body.op("Reshape", share, body.constant([num_heads, 1, -1, num_points]))
        samples = body.op(  # [H, d, Q, points]
            "GridSample", image, where, mode="linear", padding_mode="zeros", align_corners=0
        )
        weighted = body.op("ReduceSum", body.op("Mul", samples, how_much), body.constant([3]), keepdims=0)
        total = weighted if total is None else body.op("Add", total, weighted)  # [H, d, Q]
    assert total is not None
    flat = body.op("Reshape", total, body.constant([1, num_heads * head_dim, -1]))
    sampled = body.op("Transpose", flat, name="sampled", perm=[0, 2, 1])
    shapes = ir.AttrInt64s("level_shapes", [size for shape in level_shapes for size in shape])
    return body.function((DOMAIN, "DeformableSampling", overload), [sampled], [shapes], opset)
