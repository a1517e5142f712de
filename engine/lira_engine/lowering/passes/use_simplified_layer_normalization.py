"""`RMSNormalization` becomes ONNX Runtime's contrib operators, which older versions have too."""

from __future__ import annotations

import onnx_ir as ir

from lira_engine.lowering.nodes import replace_node


class UseSimplifiedLayerNormalization(ir.passes.InPlacePass):
    """Root-mean-square norms by the operator that ONNX Runtime had before the standard did.

    Requires: `RMSNormalization` over the last axis.
    Does: replaces it by `SimplifiedLayerNormalization` (ONNX Runtime registers it in the standard's domain).
    Ensures: no `RMSNormalization`.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        norms = [node for node in model.graph if node.op_type == "RMSNormalization" and node.domain == ""]
        for norm in norms:
            _require_last_axis(norm)
            attributes = {
                "axis": -1,
                "epsilon": norm.attributes.get_float("epsilon", 1e-5),
                "stash_type": norm.attributes.get_int("stash_type", 1),
            }
            new = ir.node(
                "SimplifiedLayerNormalization", norm.inputs, attributes, num_outputs=1, name=norm.name
            )
            replace_node(model.graph, norm, [new], new.outputs)
        return ir.passes.PassResult(model, bool(norms))

    def ensures(self, model: ir.Model) -> None:
        if any(node.op_type == "RMSNormalization" for node in model.graph):
            raise ir.passes.PostconditionError("an RMSNormalization is left")


def _require_last_axis(norm: ir.Node) -> None:
    axis = norm.attributes.get_int("axis", -1)
    x = norm.inputs[0]
    rank = len(x.shape) if x is not None and x.shape is not None else None
    if axis != -1 and (rank is None or axis != rank - 1):
        raise ir.passes.PreconditionError(f"{norm.name} normalises from axis {axis}, expected the last one")
