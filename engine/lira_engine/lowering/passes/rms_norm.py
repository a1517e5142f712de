"""`RMSNormalization` becomes ONNX Runtime's contrib operators, which older versions have too."""

from __future__ import annotations

import onnx_ir as ir

from lira_engine.lowering.passes.calls import cut


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
            cut(model.graph, norm, [new], new.outputs)
        return ir.passes.PassResult(model, bool(norms))

    def ensures(self, model: ir.Model) -> None:
        if any(node.op_type == "RMSNormalization" for node in model.graph):
            raise ir.passes.PostconditionError("an RMSNormalization is left")


class FuseResidualNorm(ir.passes.InPlacePass):
    """A residual sum and the norm that follows it, in one pass over memory.

    Requires: `SimplifiedLayerNormalization` after UseSimplifiedLayerNormalization; shapes of the summands.
    Does: replaces `Add` + `SimplifiedLayerNormalization` by `com.microsoft.SkipSimplifiedLayerNormalization`,
        whose last output is the sum. Sums that broadcast stay.
    Ensures: equal results, and no more: what does not fit stays as it was.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for norm in [node for node in model.graph if node.op_type == "SimplifiedLayerNormalization"]:
            total, scale = norm.inputs
            add = total.producer() if total is not None else None
            if add is None or (add.domain, add.op_type) != ("", "Add"):
                continue
            left, right = add.inputs
            # The scale must be there where the sum is.
            if left is None or right is None or scale is None or not scale.is_initializer():
                continue
            if left.shape is None or left.shape != right.shape:
                continue
            fused = ir.node(
                "SkipSimplifiedLayerNormalization",
                [left, right, scale],
                {"epsilon": norm.attributes["epsilon"].as_float()},
                domain="com.microsoft",
                outputs=[ir.Value(), ir.Value(name=""), ir.Value(name=""), ir.Value()],
                name=norm.name,
            )
            # Where the sum was: other uses of it may come before the norm.
            model.graph.insert_after(add, [fused])
            cut(model.graph, add, [], [fused.outputs[3]])
            cut(model.graph, norm, [], [fused.outputs[0]])
            modified = True
        if modified:
            model.graph.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified)


def _require_last_axis(norm: ir.Node) -> None:
    axis = norm.attributes.get_int("axis", -1)
    x = norm.inputs[0]
    rank = len(x.shape) if x is not None and x.shape is not None else None
    if axis != -1 and (rank is None or axis != rank - 1):
        raise ir.passes.PreconditionError(f"{norm.name} normalises from axis {axis}, expected the last one")
