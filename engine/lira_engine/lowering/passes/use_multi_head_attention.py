"""The standard's `Attention` without a cache becomes ONNX Runtime's `MultiHeadAttention`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.attention import BLOCKED
from lira_engine.lowering.nodes import replace_node


class UseMultiHeadAttention(ir.passes.InPlacePass):
    """Attention of an encoder by the operator that ONNX Runtime had before the standard did.

    Requires: `Attention` with 4D queries, keys and values of as many heads, no cache, no causal mask, no
        softcap, float32 or float16; a mask that blocks no query completely.
    Does: replaces it by `com.microsoft.MultiHeadAttention`, whose tensors are [B,S,H*D]: the transpositions
        around the standard operator go, reshapes stay. A boolean mask becomes one that is added.
    Ensures: no `Attention`.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        attentions = [node for node in model.graph if node.op_type == "Attention" and node.domain == ""]
        for attention in attentions:
            _replace(model.graph, attention)
        if attentions:
            model.graph.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, bool(attentions))

    def ensures(self, model: ir.Model) -> None:
        if any(node.op_type == "Attention" and node.domain == "" for node in model.graph):
            raise ir.passes.PostconditionError("an Attention is left")


def _replace(graph: ir.Graph, attention: ir.Node) -> None:
    heads, size = _require_plain(attention)
    tape = ir.tape.Tape()
    inputs: list[ir.Value | None] = [_heads_last(tape, value) for value in attention.inputs[:3]]
    mask = attention.inputs[3] if len(attention.inputs) > 3 else None
    if mask is not None:
        inputs += [None, None, _added(tape, mask, attention)]
    attributes: dict[str, ir.Attr | int] = {"num_heads": heads}
    if "scale" in attention.attributes:
        attributes["scale"] = attention.attributes["scale"]
    merged = tape.op("MultiHeadAttention", inputs, attributes, domain="com.microsoft", name=attention.name)
    split = tape.op("Reshape", [merged, _vector(tape, [0, 0, heads, size])])
    output = attention.outputs[0]
    readers = [use.node for use in output.uses()]
    if len(readers) == 1 and not output.is_graph_output() and _swaps_heads(readers[0]):
        graph.insert_before(attention, tape.nodes)
        replace_node(graph, readers[0], [], [split])
        graph.remove(attention, safe=True)
    else:
        heads_first = tape.op("Transpose", [split], {"perm": [0, 2, 1, 3]})
        replace_node(graph, attention, tape.nodes, [heads_first])


def _require_plain(attention: ir.Node) -> tuple[int, int]:
    """Heads and columns per head of the values, both static."""
    given = [value for value in attention.inputs[4:] if value is not None]
    special = [n for n in ("is_causal", "softcap", "qk_matmul_output_mode") if _set(attention, n)]
    used = [value for value in attention.outputs[1:] if value.uses() or value.is_graph_output()]
    if given or special or used:
        raise ir.passes.PreconditionError(f"{attention.name} is more than plain attention with a mask")
    shapes = [value.shape if value is not None else None for value in attention.inputs[:3]]
    if any(shape is None or len(shape) != 4 for shape in shapes):
        raise ir.passes.PreconditionError(f"{attention.name}: expected tensors [B,H,S,D] of known shape")
    counts = {shape[1] for shape in shapes if shape is not None}
    count, columns = counts.pop(), shapes[2][3] if shapes[2] is not None else None
    if counts or not isinstance(count, int) or not isinstance(columns, int):
        raise ir.passes.PreconditionError(
            f"{attention.name}: expected one static number of heads and columns"
        )
    return count, columns


def _set(node: ir.Node, name: str) -> bool:
    return name in node.attributes and bool(node.attributes[name].value)


def _swaps_heads(node: ir.Node | None) -> bool:
    return (
        node is not None and node.op_type == "Transpose" and node.attributes["perm"].as_ints() == (0, 2, 1, 3)
    )


def _heads_last(tape: ir.tape.Tape, value: ir.Value | None) -> ir.Value:
    """[B,H,S,D] as [B,S,H*D]."""
    assert value is not None
    producer = value.producer()
    if producer is not None and _swaps_heads(producer):
        rows_first = producer.inputs[0]
    else:
        rows_first = tape.op("Transpose", [value], {"perm": [0, 2, 1, 3]})
    return tape.op("Reshape", [rows_first, _vector(tape, [0, 0, -1])])


def _added(tape: ir.tape.Tape, mask: ir.Value, attention: ir.Node) -> ir.Value:
    """A mask that is added to the scores [B,H,S,L]."""
    query = attention.inputs[0]
    if mask.shape is None or query is None or query.shape is None or query.dtype is None:
        raise ir.passes.PreconditionError(f"{attention.name}: expected a mask of known shape")
    if len(mask.shape) < 2 or mask.shape[-2] != query.shape[2]:
        raise ir.passes.PreconditionError(f"{attention.name}: expected a mask with a row for every query")
    leading = 4 - len(mask.shape)
    if mask.dtype == ir.DataType.BOOL:
        open_, blocked = (_scalar(tape, value, query.dtype) for value in (0.0, BLOCKED[query.dtype]))
        mask = tape.op("Where", [mask, open_, blocked])
    if leading:
        mask = tape.op("Unsqueeze", [mask, _vector(tape, list(range(leading)))])
    return mask


def _scalar(tape: ir.tape.Tape, value: float, dtype: ir.DataType) -> ir.Value:
    return tape.op("Constant", [], {"value": ir.tensor(np.array(value, dtype.numpy()))})


def _vector(tape: ir.tape.Tape, values: list[int]) -> ir.Value:
    return tape.op("Constant", [], {"value_ints": values})
