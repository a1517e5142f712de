"""`lira.DeformableSampling` without `GridSample`, which TensorRT compiles to wrong results here
(NVIDIA/TensorRT#4813)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import onnx_ir as ir

from lira_engine.lowering.function_body import FunctionBody
from lira_engine.lowering.function_calls import DEFORMABLE_SAMPLING, SAMPLING_INPUTS, replace_sampling_bodies


class SampleByGathers(ir.passes.InPlacePass):
    """Bilinear samples as rows gathered by integer indices, with weights that are computed beside them.

    Requires: calls of `lira.DeformableSampling` with `level_shapes` and inputs of known shape, fp32.
    Does: gives each size a function with another body. Per level and corner of a sample one `Gather` of
        whole rows: nothing larger than one corner of one level is made.
    Ensures: the bodies need opset 18 only and have no `GridSample`. The calls stay; inlining puts the
        bodies in their places.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        write = partial(by_gathers, opset=model.opset_imports[""])
        return ir.passes.PassResult(model, replace_sampling_bodies(model, "gathers", write))


def by_gathers(
    level_shapes: Sequence[tuple[int, int]],
    num_heads: int,
    head_dim: int,
    num_points: int,
    overload: str,
    opset: int,
) -> ir.Function:
    """The function with the inputs and output of `lira.DeformableSampling`, in operators of opset 18."""
    body = FunctionBody(*SAMPLING_INPUTS)
    value, locations, weights = body.inputs
    pixels = sum(height * width for height, width in level_shapes)
    # One table of all heads' pixels: row h * L + (first pixel of the level) + y * width + x.
    heads_first = body.op("Transpose", value, perm=[0, 2, 1, 3])
    table = body.op("Reshape", heads_first, body.constant([num_heads * pixels, head_dim]))
    first_rows = body.constant([[[h * pixels] for h in range(num_heads)]])  # [1, H, 1]

    levels = len(level_shapes)
    by_level = zip(
        body.split(locations, [1] * levels, axis=3), body.split(weights, [1] * levels, axis=3), strict=True
    )
    total: ir.Value | None = None
    start = 0
    for (height, width), (where, share) in zip(level_shapes, by_level, strict=True):
        points = body.op("Reshape", where, body.constant([-1, num_heads, num_points, 2]))
        shares = body.op("Reshape", share, body.constant([-1, num_heads, num_points]))  # [Q, H, points]
        xs, ys = (_axis(body, points, axis, size) for axis, size in ((0, width), (1, height)))
        row = body.op("Add", first_rows, body.constant(start))
        for y, y_share in ys:
            line = body.op("Add", body.op("Mul", y, body.constant(width)), row)
            for x, x_share in xs:
                rows = body.op("Gather", table, body.op("Add", line, x), axis=0)  # [Q, H, points, d]
                scale = body.op("Mul", shares, body.op("Mul", x_share, y_share))
                scaled = body.op("Mul", rows, body.op("Unsqueeze", scale, body.constant([3])))
                corner = body.op("ReduceSum", scaled, body.constant([2]), keepdims=0)
                total = corner if total is None else body.op("Add", total, corner)  # [Q, H, d]
        start += height * width
    assert total is not None
    sampled = body.op("Reshape", total, body.constant([1, -1, num_heads * head_dim]), name="sampled")
    shapes = ir.AttrInt64s("level_shapes", [side for shape in level_shapes for side in shape])
    return body.function((*DEFORMABLE_SAMPLING, overload), [sampled], [shapes], opset)


def _axis(body: FunctionBody, points: ir.Value, axis: int, size: int) -> list[tuple[ir.Value, ir.Value]]:
    """Lower and upper pixel [Q,H,points] int64, kept inside the map, and the share of each: zero outside."""
    along = body.op("Gather", points, body.constant(axis), axis=3)
    pixel = body.op("Sub", body.op("Mul", along, body.number(size)), body.number(0.5))
    low = body.op("Floor", pixel)
    upper_share = body.op("Sub", pixel, low)
    corners = []
    for place, share in (
        (low, body.op("Sub", body.number(1), upper_share)),
        (body.op("Add", low, body.number(1)), upper_share),
    ):
        inside = body.op("Clip", place, body.number(0), body.number(size - 1))
        # Where clipping moved it, it was outside.
        counts = body.op("Cast", body.op("Equal", place, inside), to=ir.DataType.FLOAT)
        corners.append((body.op("Cast", inside, to=ir.DataType.INT64), body.op("Mul", share, counts)))
    return corners
