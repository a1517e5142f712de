"""`CastLike` of fp32 constants goes."""

from __future__ import annotations

import onnx_ir as ir

from lira_engine.lowering.nodes import nodes_of, require_inlined


class ResolveCastLike(ir.passes.InPlacePass):
    """Function bodies are written for any floating-point type; inlined into an fp32 graph they are fp32.

    Requires: functions inlined; each `CastLike` of an fp32 constant is like an fp32 value, or one whose type
        is not known.
    Does: replaces the `CastLike` by the constant.
    Ensures: no `CastLike` of an fp32 constant keeps its reference alive.
    """

    def requires(self, model: ir.Model) -> None:
        require_inlined(model)
        for node in nodes_of(model, "CastLike"):
            reference = node.inputs[1]
            if _constant(node) and reference is not None and reference.dtype not in (None, ir.DataType.FLOAT):
                raise ir.passes.PreconditionError(f"{node.name} casts to {reference.dtype}, expected fp32")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in nodes_of(model, "CastLike"):
            constant = _constant(node)
            if constant is not None:
                ir.convenience.replace_all_uses_with(node.outputs[0], constant)
                model.graph.remove(node, safe=True)
                modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        for node in nodes_of(model, "CastLike"):
            if _constant(node) is not None:
                raise ir.passes.PostconditionError(f"{node.name} still casts an fp32 constant")


def _constant(cast_like: ir.Node) -> ir.Value | None:
    """Return the fp32 constant that a `CastLike` casts; None if it casts something else."""
    value = cast_like.inputs[0]
    producer = value.producer() if value is not None else None
    tensor = producer.attributes.get_tensor("value") if producer is not None else None
    return value if tensor is not None and tensor.dtype == ir.DataType.FLOAT else None
