"""`Attention` without a cache becomes ONNX Runtime's `MultiHeadAttention`."""

from __future__ import annotations

import onnx_ir as ir

from lira_engine.lowering.attention import (
    MASKED,
    heads_last,
    mask_of,
    replace_attention,
    require_plain,
    sizes_of,
)
from lira_engine.lowering.nodes import CONTRIB, constant_scalar, constant_vector, nodes_of


class UseMultiHeadAttention(ir.passes.InPlacePass):
    """An encoder's attention by the operator that ONNX Runtime had before the standard did.

    Requires: `Attention` with 4D queries, keys and values of as many heads, no cache, no causal mask, no
        softcap, fp32 or fp16; a mask of known shape with a row for every query, which masks all keys of no
        query (the latter is not checked).
    Does: replaces it by `com.microsoft.MultiHeadAttention`, whose tensors are [B,S,H*D]: the transpositions
        around the standard operator go, reshapes stay. A boolean mask becomes one that is added.
    Ensures: no `Attention`.
    """

    def requires(self, model: ir.Model) -> None:
        for attention in nodes_of(model, "Attention"):
            require_plain(attention, *MASKED)
            sizes_of(attention)
            _require_rows(attention)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        attentions = nodes_of(model, "Attention")
        for attention in attentions:
            _replace(model.graph, attention)
        if attentions:
            model.graph.opset_imports[CONTRIB] = 1
        return ir.passes.PassResult(model, bool(attentions))

    def ensures(self, model: ir.Model) -> None:
        if nodes_of(model, "Attention"):
            raise ir.passes.PostconditionError("an Attention is left")


def _require_rows(attention: ir.Node) -> None:
    """Raise PreconditionError if the mask does not have a row for every query."""
    query, mask = attention.inputs[0], mask_of(attention)
    if mask is None:
        return
    if mask.shape is None:
        raise ir.passes.PreconditionError(f"{attention.name}: expected a mask of known shape")
    assert query is not None and query.shape is not None
    if len(mask.shape) < 2 or mask.shape[-2] != query.shape[2]:
        raise ir.passes.PreconditionError(f"{attention.name}: expected a mask with a row for every query")


def _replace(graph: ir.Graph, attention: ir.Node) -> None:
    sizes, mask = sizes_of(attention), mask_of(attention)
    tape = ir.tape.Tape()
    inputs: list[ir.Value | None] = [heads_last(tape, value) for value in attention.inputs[:3]]
    if mask is not None:
        inputs += [None, None, _added_mask(tape, mask, attention)]
    attributes: dict[str, ir.Attr | int] = {"num_heads": sizes.heads}
    if "scale" in attention.attributes:
        attributes["scale"] = attention.attributes["scale"]
    merged = tape.op("MultiHeadAttention", inputs, attributes, domain=CONTRIB, name=attention.name)
    replace_attention(graph, attention, tape, merged, sizes)


def _added_mask(tape: ir.tape.Tape, mask: ir.Value, attention: ir.Node) -> ir.Value:
    """Return a 4D mask that is added to the scores [B,H,S,L]."""
    assert mask.shape is not None
    leading = 4 - len(mask.shape)
    if mask.dtype == ir.DataType.BOOL:
        dtype = attention.inputs[0].dtype  # type: ignore[union-attr]
        assert dtype is not None
        kept, masked = (constant_scalar(tape, value, dtype) for value in (0.0, MASKED[dtype]))
        mask = tape.op("Where", [mask, kept, masked])
    if leading:
        mask = tape.op("Unsqueeze", [mask, constant_vector(tape, list(range(leading)))])
    return mask
