"""What the passes over the standard's `Attention` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.nodes import constant_vector, replace_node

Fused = Callable[[int, int], bool]
"""(query heads, head size) -> whether an engine has a fused kernel for `Attention` of these sizes."""

MASKED = {
    ir.DataType.FLOAT: float(np.finfo(np.float32).min / 2),
    ir.DataType.FLOAT16: float(np.finfo(np.float16).min / 2),
}
"""Score of a masked key. Half of the lowest number: adding a score to it does not overflow, and softmax
gives it zero."""


def none_fused(heads: int, head_size: int) -> bool:
    """Return False: no kernel is fused."""
    return False


class Sizes(NamedTuple):
    """Sizes of an `Attention`: heads, columns of a query's head, columns of a value's head."""

    heads: int
    head_size: int
    value_size: int


def sizes_of(attention: ir.Node) -> Sizes:
    """Return the sizes of an `Attention` with query, key and value [B, H, S, D].

    Raises PreconditionError if they are not known, or there are fewer KV heads than heads.
    """
    shapes = [value.shape if value is not None else None for value in attention.inputs[:3]]
    match [list(shape) if shape is not None else [] for shape in shapes]:
        case [[_, int(heads), _, int(size)], [_, key_heads, _, _], [_, value_heads, _, int(value_size)]]:
            if key_heads == value_heads == heads:
                return Sizes(heads, size, value_size)
    raise ir.passes.PreconditionError(
        f"{attention.name}: expected query, key and value [B,H,S,D] with one static number of heads, found "
        f"{', '.join(str(shape) for shape in shapes)}"
    )


def mask_of(attention: ir.Node) -> ir.Value | None:
    """Return the mask of an `Attention`, None if it has none."""
    return attention.inputs[3] if len(attention.inputs) > 3 else None


def require_plain(attention: ir.Node, *dtypes: ir.DataType) -> None:
    """Raise PreconditionError if an `Attention` has more than query, key, value, mask and scale, or a query
    that is not of `dtypes`."""
    caches = [value for value in attention.inputs[4:] if value is not None]
    special = ("is_causal", "softcap", "q_num_heads", "kv_num_heads", "qk_matmul_output_mode")
    given = [name for name in special if name in attention.attributes and attention.attributes[name].value]
    used = [value for value in attention.outputs[1:] if value.uses() or value.is_graph_output()]
    if caches or given or used:
        raise ir.passes.PreconditionError(f"{attention.name} is more than plain attention with a mask")
    query = attention.inputs[0]
    if query is None or query.dtype not in dtypes:
        expected = " or ".join(dtype.name for dtype in dtypes)
        raise ir.passes.PreconditionError(f"{attention.name}: expected a query in {expected}")


def heads_last(tape: ir.tape.Tape, value: ir.Value | None) -> ir.Value:
    """Return [B,H,S,D] as [B,S,H*D]."""
    assert value is not None
    producer = value.producer()
    if producer is not None and _swaps_heads(producer):
        rows_first = producer.inputs[0]
    else:
        rows_first = tape.op("Transpose", [value], {"perm": [0, 2, 1, 3]})
    return tape.op("Reshape", [rows_first, constant_vector(tape, [0, 0, -1])])


def replace_attention(
    graph: ir.Graph, attention: ir.Node, tape: ir.tape.Tape, merged: ir.Value, sizes: Sizes
) -> None:
    """Replace an `Attention` by the nodes of `tape`, which make its result as [B,S,H*D], `merged`. Where a
    transposition to [B,S,H,D] reads it alone, this goes, too."""
    split = tape.op("Reshape", [merged, constant_vector(tape, [0, 0, sizes.heads, sizes.value_size])])
    output = attention.outputs[0]
    readers = [use.node for use in output.uses()]
    if len(readers) == 1 and not output.is_graph_output() and _swaps_heads(readers[0]):
        graph.insert_before(attention, tape.nodes)
        replace_node(graph, readers[0], [], [split])
        graph.remove(attention, safe=True)
    else:
        heads_first = tape.op("Transpose", [split], {"perm": [0, 2, 1, 3]})
        replace_node(graph, attention, tape.nodes, [heads_first])


def _swaps_heads(node: ir.Node) -> bool:
    """Return whether a node transposes [B,H,S,D] to [B,S,H,D], or back."""
    return node.op_type == "Transpose" and node.attributes["perm"].as_ints() == (0, 2, 1, 3)
