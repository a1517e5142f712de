"""Calls of the `lira.*` functions in a graph, and how to replace them."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

CACHED_ATTENTION = ("lira", "CachedAttention")
"""Described in lira_export.graphs.functions; inputs in lira_engine.function_body; attributes num_heads and
num_kv_heads."""
DEFORMABLE_SAMPLING = ("lira", "DeformableSampling")
"""Described there too; attribute level_shapes."""


def calls_of(model: ir.Model, function: tuple[str, str]) -> list[ir.Node]:
    """The calls of a function (domain, name), with any overload, in the main graph."""
    return [node for node in model.graph if (node.domain, node.op_type) == function]


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


def cut(graph: ir.Graph, old: ir.Node, new: Sequence[ir.Node], outputs: Sequence[ir.Value | None]) -> None:
    """Put `new` in the place of `old`; `outputs` (None: unused) take over names, types, shapes and uses."""
    pairs = [(a, b) for a, b in zip(old.outputs, outputs, strict=False) if b is not None]
    ir.convenience.replace_nodes_and_values(
        graph, old, [old], new, [a for a, _ in pairs], [b for _, b in pairs]
    )
