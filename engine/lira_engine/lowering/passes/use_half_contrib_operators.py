"""ONNX Runtime's own operators in fp16, as its CUDA provider has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir

from lira_engine.lowering.weights import converted, weight_of

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT

# Inputs that are floating point; all outputs are.
_OPERATORS: Mapping[str, Sequence[int]] = MappingProxyType(
    {"GroupQueryAttention": (0, 1, 2, 3, 4, 7, 8), "MatMulNBits": (0, 2)}
)


class UseHalfContribOperators(ir.passes.InPlacePass):
    """Cached attention and products with 4-bit weights in fp16, between fp32 neighbours.

    Requires: after `UseMixedPrecision`; `GroupQueryAttention` and `MatMulNBits` whose floating-point inputs
        are fp32, from fp16 or not.
    Does: lets these operators read and write fp16. A Cast from fp16 before one, or to fp16 after one, goes.
        Graph outputs that `in_half` names become fp16, others stay what they are.
    Ensures: no such operator reads or writes fp32.
    """

    def __init__(self, in_half: Callable[[str], bool] = lambda name: False) -> None:
        super().__init__()
        self.in_half = in_half

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [n for n in model.graph if n.domain == "com.microsoft" and n.op_type in _OPERATORS]
        halves: dict[ir.Value, ir.Value] = {}
        for node in nodes:
            for place in _OPERATORS[node.op_type]:
                value = node.inputs[place] if place < len(node.inputs) else None
                if value is not None and value.dtype != HALF:
                    if value not in halves:
                        halves[value] = _half(model.graph, value, node)
                    node.replace_input_with(place, halves[value])
            for output in node.outputs:
                self._write_half(model.graph, node, output)
        return ir.passes.PassResult(model, bool(nodes))

    def ensures(self, model: ir.Model) -> None:
        for node in model.graph:
            if node.domain == "com.microsoft" and node.op_type in _OPERATORS:
                read = [node.inputs[i] for i in _OPERATORS[node.op_type] if i < len(node.inputs)]
                if any(value is not None and value.dtype != HALF for value in (*read, *node.outputs)):
                    raise ir.passes.PostconditionError(f"{node.name} is not in fp16")

    def _write_half(self, graph: ir.Graph, node: ir.Node, output: ir.Value) -> None:
        output.dtype = HALF
        readers = list(output.uses())
        kept = output.is_graph_output() and not self.in_half(output.name or "")
        to_half = [use.node for use in readers if _casts(use.node, HALF)]
        others = [use for use in readers if use.node not in to_half]
        for cast in to_half:
            ir.convenience.replace_all_uses_with(cast.outputs[0], output)
            graph.remove(cast, safe=True)
        others = [use for use in others if use.node.op_type not in _OPERATORS]
        if not others and not kept:
            return
        cast = ir.node("Cast", [output], {"to": SINGLE}, name=f"{output.name}/Cast.wide")
        wide = cast.outputs[0]
        wide.type, wide.shape = ir.TensorType(SINGLE), output.shape
        wide.name = output.name if kept else f"{output.name}.wide"
        for use in others:
            use.node.replace_input_with(use.idx, wide)
        if kept:
            output.name = f"{wide.name}.half"
            graph.outputs[graph.outputs.index(output)] = wide
        graph.insert_after(node, cast)


def _half(graph: ir.Graph, value: ir.Value, before: ir.Node) -> ir.Value:
    """`value` in fp16."""
    weight = weight_of(value)
    if weight is not None:
        return converted(graph, weight, HALF, f"{weight.name}.half")
    producer = value.producer()
    if producer is not None and _casts(producer, SINGLE) and producer.inputs[0] is not None:
        source = producer.inputs[0]
        if source.dtype == HALF:
            return source
    cast = ir.node("Cast", [value], {"to": HALF}, name=f"{value.name}/Cast.contrib")
    half = cast.outputs[0]
    half.name, half.type, half.shape = f"{value.name}.contrib", ir.TensorType(HALF), value.shape
    graph.insert_before(before, cast)
    return half


def _casts(node: ir.Node, dtype: ir.DataType) -> bool:
    return (node.domain, node.op_type) == ("", "Cast") and node.attributes["to"].as_int() == dtype
