"""`RMSNormalization` becomes ONNX Runtime's `SimplifiedLayerNormalization`, which older versions have too."""

from __future__ import annotations

import onnx_ir as ir

from lira_engine.lowering.nodes import nodes_of, replace_node, require_last_axis


class UseSimplifiedLayerNormalization(ir.passes.InPlacePass):
    """RMS norms by the operator that ONNX Runtime had before the standard did.

    Requires: each `RMSNormalization` is over the last axis.
    Does: replaces it by `SimplifiedLayerNormalization` (ONNX Runtime registers it in the standard's domain).
    Ensures: no `RMSNormalization`.
    """

    def requires(self, model: ir.Model) -> None:
        for norm in nodes_of(model, "RMSNormalization"):
            require_last_axis(norm)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        norms = nodes_of(model, "RMSNormalization")
        for norm in norms:
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
        if nodes_of(model, "RMSNormalization"):
            raise ir.passes.PostconditionError("an RMSNormalization is left")
