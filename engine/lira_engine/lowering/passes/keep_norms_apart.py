"""Residual sums before layer norms are spelled so that ONNX Runtime leaves the two apart."""

from __future__ import annotations

import onnx_ir as ir

from lira_engine.lowering.nodes import nodes_of, replace_node


class KeepNormsApart(ir.passes.InPlacePass):
    """ONNX Runtime fuses `Add` and `LayerNormalization` on CPUs into an operator that takes 5 times as long
    as the two.

    Requires: nothing.
    Does: replaces each `Add` of two computed values of one shape that a `LayerNormalization` reads by `Sum`,
        which ONNX Runtime does not fuse.
    Ensures: no such `Add` is left. Results are those of the graph as it is written.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        sums = _sums(model)
        for add in sums:
            total = ir.node("Sum", add.inputs, num_outputs=1, name=add.name)
            replace_node(model.graph, add, [total], total.outputs)
        return ir.passes.PassResult(model, bool(sums))

    def ensures(self, model: ir.Model) -> None:
        for add in _sums(model):
            raise ir.passes.PostconditionError(f"{add.name} is still an Add")


def _sums(model: ir.Model) -> list[ir.Node]:
    return [node for node in nodes_of(model, "Add") if _is_residual(node)]


def _is_residual(add: ir.Node) -> bool:
    left, right = add.inputs
    if left is None or right is None or left.is_initializer() or right.is_initializer():
        return False
    if left.shape is None or left.shape != right.shape:
        return False
    return any(use.node.op_type == "LayerNormalization" and use.idx == 0 for use in add.outputs[0].uses())
