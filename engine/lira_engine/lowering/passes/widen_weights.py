"""16-bit weights become fp32."""

from __future__ import annotations

import onnx_ir as ir

from lira_engine.lowering.nodes import nodes_of
from lira_engine.lowering.weights import cast_initializer

_16_BITS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class WidenWeights(ir.passes.InPlacePass):
    """fp16 and bf16 weights in fp32, for targets that compute in nothing else.

    Requires: nothing.
    Does: replaces each Cast of a 16-bit initializer to fp32 by an fp32 initializer, whose values are cast
        when the file is written, one weight at a time. Removes 16-bit initializers without uses.
    Ensures: no Cast of a 16-bit initializer to fp32.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, modified = model.graph, False
        for cast in nodes_of(model, "Cast"):
            weight = _widened(cast)
            if weight is None:
                continue
            if cast.outputs[0].uses():
                wide = cast_initializer(graph, weight, ir.DataType.FLOAT, f"{weight.name}.wide")
                ir.convenience.replace_all_uses_with(cast.outputs[0], wide)
            graph.remove(cast, safe=True)
            modified = True
        for name, weight in list(graph.initializers.items()):
            if weight.dtype in _16_BITS and not weight.uses() and not weight.is_graph_output():
                del graph.initializers[name]
                modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        for cast in nodes_of(model, "Cast"):
            if _widened(cast) is not None:
                raise ir.passes.PostconditionError(f"{cast.name} still casts a 16-bit weight to fp32")


def _widened(cast: ir.Node) -> ir.Value | None:
    """Return the 16-bit initializer that a Cast makes fp32; None if it does something else."""
    weight = cast.inputs[0]
    if weight is None or not weight.is_initializer() or weight.dtype not in _16_BITS:
        return None
    return weight if cast.attributes["to"].as_int() == ir.DataType.FLOAT else None
