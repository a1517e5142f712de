"""`CastLike` in function bodies, once their inputs are known."""

from __future__ import annotations

import onnx_ir as ir


class ResolveCastLike(ir.passes.InPlacePass):
    """Bodies are written for any floating-point type; after inlining the type is fp32.

    Requires: functions inlined, fp32 arithmetic.
    Does: puts the fp32 constant in the place of its `CastLike`.
    Ensures: no `CastLike` of an fp32 constant, which also no longer keeps its reference alive.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in [node for node in model.graph if (node.domain, node.op_type) == ("", "CastLike")]:
            value = node.inputs[0]
            constant = value.producer() if value is not None else None
            tensor = constant.attributes.get_tensor("value") if constant is not None else None
            if value is not None and tensor is not None and tensor.dtype == ir.DataType.FLOAT:
                ir.convenience.replace_all_uses_with(node.outputs[0], value)
                model.graph.remove(node, safe=True)
                modified = True
        return ir.passes.PassResult(model, modified)
