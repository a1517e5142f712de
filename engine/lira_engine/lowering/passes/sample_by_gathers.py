"""`lira.DeformableSampling` gets a body of gathers.

TensorRT compiles `GridSample` to wrong results here (NVIDIA/TensorRT#4813).
"""

from __future__ import annotations

from functools import partial

import onnx_ir as ir

from lira_engine.lowering.function_body import FunctionBody
from lira_engine.lowering.function_calls import (
    DEFORMABLE_SAMPLING,
    SAMPLING_INPUTS,
    Sampling,
    calls_of,
    ensure_operators,
    give_sampling_bodies,
    sampling_of,
)


class SampleByGathers(ir.passes.InPlacePass):
    """Bilinear samples as rows gathered by integer indices, times weights that are computed beside them.

    Requires: calls of `lira.DeformableSampling` with `level_shapes` and inputs of known shape; fp32 (not
        checked).
    Does: lets each call call another body. Per level and corner of a sample it has one `Gather` of whole
        rows: no intermediate value is larger than one corner of one level.
    Ensures: the bodies have no `GridSample`. They need opset 18 (not checked). The calls stay; inlining puts
        the bodies in their places.
    """

    def requires(self, model: ir.Model) -> None:
        for call in calls_of(model, DEFORMABLE_SAMPLING):
            sampling_of(call)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        write = partial(by_gathers, opset=model.opset_imports[""])
        return ir.passes.PassResult(model, give_sampling_bodies(model, "gathers", write))

    def ensures(self, model: ir.Model) -> None:
        for call in calls_of(model, DEFORMABLE_SAMPLING):
            ensure_operators(model, call, lambda op_type: op_type != "GridSample")


def by_gathers(sampling: Sampling, overload: str, opset: int) -> ir.Function:
    """Return a function with the inputs and output of `lira.DeformableSampling`, in operators of opset 18."""
    level_shapes, num_heads, head_dim, num_points = sampling
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
    for (height, width), (location, weight) in zip(level_shapes, by_level, strict=True):
        points = body.op("Reshape", location, body.constant([-1, num_heads, num_points, 2]))
        point_weights = body.op(
            "Reshape", weight, body.constant([-1, num_heads, num_points])
        )  # [Q, H, points]
        xs, ys = (_axis(body, points, axis, size) for axis, size in ((0, width), (1, height)))
        row = body.op("Add", first_rows, body.constant(start))
        for y, y_weight in ys:
            line = body.op("Add", body.op("Mul", y, body.constant(width)), row)
            for x, x_weight in xs:
                rows = body.op("Gather", table, body.op("Add", line, x), axis=0)  # [Q, H, points, d]
                scale = body.op("Mul", point_weights, body.op("Mul", x_weight, y_weight))
                scaled = body.op("Mul", rows, body.op("Unsqueeze", scale, body.constant([3])))
                corner = body.op("ReduceSum", scaled, body.constant([2]), keepdims=0)
                total = corner if total is None else body.op("Add", total, corner)  # [Q, H, d]
        start += height * width
    assert total is not None
    sampled = body.op("Reshape", total, body.constant([1, -1, num_heads * head_dim]), name="sampled")
    shapes = ir.AttrInt64s("level_shapes", [side for shape in level_shapes for side in shape])
    return body.function((*DEFORMABLE_SAMPLING, overload), [sampled], [shapes], opset)


def _axis(body: FunctionBody, points: ir.Value, axis: int, size: int) -> list[tuple[ir.Value, ir.Value]]:
    """Return the lower and the upper pixel [Q,H,points] int64, clipped to the map, and the bilinear weight of
    each: zero outside the map."""
    along = body.op("Gather", points, body.constant(axis), axis=3)
    pixel = body.op("Sub", body.op("Mul", along, body.number(size)), body.number(0.5))
    low = body.op("Floor", pixel)
    upper_weight = body.op("Sub", pixel, low)
    corners = []
    for place, weight in (
        (low, body.op("Sub", body.number(1), upper_weight)),
        (body.op("Add", low, body.number(1)), upper_weight),
    ):
        inside = body.op("Clip", place, body.number(0), body.number(size - 1))
        # A pixel that clipping moves is outside.
        is_inside = body.op("Cast", body.op("Equal", place, inside), to=ir.DataType.FLOAT)
        corners.append((body.op("Cast", inside, to=ir.DataType.INT64), body.op("Mul", weight, is_inside)))
    return corners
