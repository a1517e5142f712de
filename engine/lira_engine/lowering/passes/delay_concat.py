"""Elementwise operators work on the parts of a Concat, which comes after them."""

from __future__ import annotations

import onnx_ir as ir

from lira_engine.lowering.nodes import nodes_of, replace_node

ELEMENTWISE = ("Sigmoid", "Mul")


class DelayConcat(ir.passes.InPlacePass):
    """Parts that are still in the processor's cache, and one Concat in place of several.

    Requires: nothing.
    Does: replaces each `Sigmoid` or `Mul` whose inputs are all made by a `Concat` of parts of the same known
        sizes along one axis by one operator for each part and a Concat. Concats that nobody reads any more
        are removed. The same numbers, in the same order.
    Ensures: no such operator is left.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in nodes_of(model, *ELEMENTWISE):
            concats = _concats(node)
            if concats:
                _delay(model.graph, node, concats)
                modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        for node in nodes_of(model, *ELEMENTWISE):
            if _concats(node):
                raise ir.passes.PostconditionError(f"{node.name} still reads whole tensors")


def _concats(node: ir.Node) -> list[ir.Node]:
    """Return the Concats that make the inputs of a node; none if it cannot take their parts."""
    makers = [value.producer() if value is not None else None for value in node.inputs]
    concats = [one for one in makers if one is not None and (one.domain, one.op_type) == ("", "Concat")]
    if len(concats) < len(makers) or len({_layout(one) for one in concats}) != 1:
        return []
    return concats if None not in (_layout(concats[0]) or (None,)) else []


def _layout(concat: ir.Node) -> tuple[int | str | None, ...] | None:
    """Return the axis of a Concat and the sizes of its parts along it, None where one is not known."""
    axis = concat.attributes["axis"].as_int()
    sizes: list[int | str | None] = [axis]
    for part in concat.inputs:
        size = part.shape[axis] if part is not None and part.shape is not None else None
        sizes.append(size if isinstance(size, int) else None)
    return tuple(sizes)


def _delay(graph: ir.Graph, node: ir.Node, concats: list[ir.Node]) -> None:
    tape = ir.tape.Tape()
    parts = []
    for i, inputs in enumerate(zip(*(one.inputs for one in concats), strict=True)):
        part = tape.op(node.op_type, inputs, name=f"{node.name}.{i}")
        assert inputs[0] is not None
        part.type, part.shape = inputs[0].type, inputs[0].shape
        parts.append(part)
    whole = tape.op("Concat", parts, {"axis": concats[0].attributes["axis"].as_int()}, name=node.name)
    replace_node(graph, node, list(tape.nodes), [whole])
    for concat in dict.fromkeys(concats):
        if not concat.outputs[0].uses() and not concat.outputs[0].is_graph_output():
            graph.remove(concat, safe=True)
