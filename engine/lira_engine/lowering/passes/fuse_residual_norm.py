"""A residual sum and its norm become one operator of ONNX Runtime."""

from __future__ import annotations

import onnx_ir as ir

from lira_engine.lowering.nodes import replace_node


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
            replace_node(model.graph, add, [], [fused.outputs[3]])
            replace_node(model.graph, norm, [], [fused.outputs[0]])
            modified = True
        if modified:
            model.graph.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified)
