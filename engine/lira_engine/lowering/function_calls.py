"""Calls of the `lira.*` functions in a graph, and how to replace them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

CACHED_ATTENTION = ("lira", "CachedAttention")
"""Described in lira_export.graphs.functions; inputs in lowering.function_body; attributes num_heads and
num_kv_heads."""
DEFORMABLE_SAMPLING = ("lira", "DeformableSampling")
"""Described there too; attribute level_shapes."""


def calls_of(model: ir.Model, function: tuple[str, str]) -> list[ir.Node]:
    """The calls of a function (domain, name), with any overload, in the main graph."""
    return [node for node in model.graph if (node.domain, node.op_type) == function]


SAMPLING_INPUTS = ("value", "locations", "weights")


def sampling_shape(call: ir.Node) -> tuple[list[tuple[int, int]], int, int, int]:
    """Heights and widths of the levels, heads, columns of a head and points of a call of
    `DeformableSampling`, from value [1,L,H,d] and locations [1,Q,H,levels,points,2].

    Raises PreconditionError where they are not known.
    """
    sides = call.attributes["level_shapes"].as_ints()
    value, locations, _ = call.inputs
    if value is not None and locations is not None and value.shape and locations.shape:
        match [*value.shape[2:], locations.shape[4]]:
            case [int(heads), int(columns), int(points)]:
                return list(zip(sides[0::2], sides[1::2], strict=True)), heads, columns, points
    raise ir.passes.PreconditionError(f"{call.name}: the shapes of its inputs are not known")


def replace_sampling_bodies(
    model: ir.Model, kind: str, write: Callable[[Sequence[tuple[int, int]], int, int, int, str], ir.Function]
) -> bool:
    """Give the calls of `DeformableSampling` other bodies, one function for each size; whether there are any.

    `write` gets what `sampling_shape` finds, and the function's overload, which begins with `kind`.
    """
    calls = calls_of(model, DEFORMABLE_SAMPLING)
    for call in calls:
        levels, heads, columns, points = sampling_shape(call)
        sizes = (*(side for level in levels for side in level), heads, columns, points)
        overload = "_".join([kind, *map(str, sizes)])
        identifier = (*DEFORMABLE_SAMPLING, overload)
        if identifier not in model.functions:
            model.functions[identifier] = write(levels, heads, columns, points, overload)
        call.overload = overload
    return bool(calls)


def cache_shape(call: ir.Node) -> tuple[int, int, int]:
    """KV heads, rows and columns of a call of `CachedAttention`, from its key cache [1, KV, N, D].

    Raises PreconditionError where they are not known.
    """
    cache = call.inputs[3]
    sizes = [*cache.shape][1:] if cache is not None and cache.shape is not None else []
    match sizes:
        case [int(kv_heads), int(rows), int(columns)]:
            return kv_heads, rows, columns
    raise ir.passes.PreconditionError(f"{call.name}: the shape of its key cache is not known")
