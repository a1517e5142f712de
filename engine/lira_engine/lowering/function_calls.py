"""Calls of the `lira.*` functions in a graph, and how to give them other bodies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import onnx_ir as ir

CACHED_ATTENTION = ("lira", "CachedAttention")
"""Described in lira_export.graphs.functions; inputs in lowering.function_body; attributes num_heads and
num_kv_heads."""
DEFORMABLE_SAMPLING = ("lira", "DeformableSampling")
"""Described there too; attribute level_shapes."""
SAMPLING_INPUTS = ("value", "locations", "weights")


def calls_of(model: ir.Model, function: tuple[str, str]) -> list[ir.Node]:
    """Return the calls of a function (domain, name), with any overload, in the main graph."""
    return [node for node in model.graph if (node.domain, node.op_type) == function]


def give_body(model: ir.Model, call: ir.Node, overload: str, write: Callable[[], ir.Function]) -> bool:
    """Let `call` call the overload of its function; `write` makes it if the model has none.

    Return whether that changed the model.
    """
    if call.overload == overload:
        return False
    identifier = (call.domain, call.op_type, overload)
    if identifier not in model.functions:
        model.functions[identifier] = write()
    call.overload = overload
    return True


def ensure_operators(model: ir.Model, call: ir.Node, allowed: Callable[[str], bool]) -> None:
    """Raise PostconditionError if the body of a call is missing, or has an operator that is not `allowed`."""
    body = model.functions.get(call.op_identifier())
    if body is None:
        raise ir.passes.PostconditionError(f"{call.name} calls {call.op_type}, which has no body")
    for node in body:
        if not allowed(node.op_type):
            raise ir.passes.PostconditionError(f"the body of {call.name} has a {node.op_type}")


class Sampling(NamedTuple):
    """Sizes of a call of `DeformableSampling`: (height, width) of each level, heads, columns of a head, and
    points of a head, query and level."""

    levels: list[tuple[int, int]]
    heads: int
    head_size: int
    points: int


def sampling_of(call: ir.Node) -> Sampling:
    """Return the sizes of a call of `DeformableSampling`, from value [1,L,H,d] and locations
    [1,Q,H,levels,points,2].

    Raises PreconditionError if they are not known.
    """
    value, locations, _ = call.inputs
    known = value is not None and locations is not None and value.shape and locations.shape
    if "level_shapes" in call.attributes and known:
        sides = call.attributes["level_shapes"].as_ints()
        match [*value.shape[2:], locations.shape[4]]:  # type: ignore[union-attr, index]
            case [int(heads), int(head_size), int(points)]:
                levels = list(zip(sides[0::2], sides[1::2], strict=True))
                return Sampling(levels, heads, head_size, points)
    raise ir.passes.PreconditionError(f"{call.name}: level_shapes and the shapes of its inputs are not known")


def give_sampling_bodies(model: ir.Model, kind: str, write: Callable[[Sampling, str], ir.Function]) -> bool:
    """Give the calls of `DeformableSampling` other bodies, one for each size. Return whether any changed.

    `write` gets the sizes, and the overload of the new function, which begins with `kind`.
    """
    changed = False
    for call in calls_of(model, DEFORMABLE_SAMPLING):
        sizes = sampling_of(call)
        numbers = (*(side for level in sizes.levels for side in level), *sizes[1:])
        overload = "_".join([kind, *map(str, numbers)])
        changed |= give_body(model, call, overload, partial(write, sizes, overload))
    return changed


class CachedAttention(NamedTuple):
    """Sizes of a call of `CachedAttention`: query heads, KV heads, rows of the cache, columns of a head."""

    heads: int
    kv_heads: int
    capacity: int
    head_size: int


def cached_attention_of(call: ir.Node) -> CachedAttention:
    """Return the sizes of a call of `CachedAttention`, from its attributes and its key cache [1, KV, N, D].

    Raises PreconditionError if they are not known, or contradict one another.
    """
    cache = call.inputs[3]
    heads, kv_heads = (call.attributes.get_int(name, 0) for name in ("num_heads", "num_kv_heads"))
    match list(cache.shape) if cache is not None and cache.shape is not None else []:
        case [_, int(found), int(capacity), int(head_size)] if heads and found == kv_heads:
            return CachedAttention(heads, kv_heads, capacity, head_size)
    raise ir.passes.PreconditionError(
        f"{call.name}: num_heads, num_kv_heads and the shape of its key cache are not known, or differ"
    )
