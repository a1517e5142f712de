"""Residual sums of a convolutional trunk keep the layout of its matmuls."""

from __future__ import annotations

import onnx_ir as ir

from lira_engine.lowering.nodes import nodes_of, replace_node

_LAST, _FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""perm of a `Transpose` from [B,C,H,W] to [B,H,W,C], and back."""


class KeepChannelsLast(ir.passes.InPlacePass):
    """A ConvNeXt block transposes to [B,H,W,C] for its norm and matmuls, and back for its residual sum.

    ONNX Runtime has convolutions that read and write [B,H,W,C]: with the sum in this layout, it moves the
    remaining transpositions into them.

    Requires: nothing.
    Does: replaces each `Add` of a value [B,C,H,W] and a transposed one [B,H,W,C] by the transposition of
        their sum in [B,H,W,C]; transpositions to and fro go.
    Ensures: no such `Add` is left. Results stay bit for bit.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for add in nodes_of(model, "Add"):
            if _adds_transposed(add):
                _sum_channels_last(model.graph, add)
                modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        for add in nodes_of(model, "Add"):
            if _adds_transposed(add):
                raise ir.passes.PostconditionError(f"{add.name} adds a transposed value")


def _adds_transposed(add: ir.Node) -> bool:
    """Return whether a sum is of two values [B,C,H,W], one of which was [B,H,W,C]."""
    left, right = add.inputs
    if left is None or right is None or left.shape is None or left.shape != right.shape:
        return False
    return _before(left, _FIRST) is not None or _before(right, _FIRST) is not None


def _before(value: ir.Value, perm: tuple[int, ...]) -> ir.Value | None:
    """Return what a `Transpose` with this perm made the value of; None if none did."""
    node = value.producer()
    return node.inputs[0] if node is not None and _transposes(node, perm) else None


def _transposes(node: ir.Node, perm: tuple[int, ...]) -> bool:
    return (node.domain, node.op_type) == ("", "Transpose") and node.attributes["perm"].as_ints() == perm


def _sum_channels_last(graph: ir.Graph, add: ir.Node) -> None:
    tape = ir.tape.Tape()
    terms = []
    for value in add.inputs:
        assert value is not None
        last = _before(value, _FIRST)
        terms.append(tape.op("Transpose", [value], {"perm": _LAST}) if last is None else last)
    total = tape.op("Add", terms, name=add.name)
    old = add.outputs[0]
    assert old.shape is not None
    total.type, total.shape = old.type, ir.Shape([old.shape[axis] for axis in _LAST])
    first = tape.op("Transpose", [total], {"perm": _FIRST})
    graph.insert_before(add, tape.nodes)
    for reader in [use.node for use in old.uses() if _transposes(use.node, _LAST)]:
        replace_node(graph, reader, [], [total])
    replace_node(graph, add, [], [first])
