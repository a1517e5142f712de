"""ONNX Runtime's cached attention and 4-bit matmuls run in fp16, as its CUDA provider has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import onnx_ir as ir

from lira_engine.lowering.nodes import CONTRIB, nodes_of
from lira_engine.lowering.weights import cast_initializer, weight_of

HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT

_OPERATORS: Mapping[str, Sequence[int]] = MappingProxyType(
    {"GroupQueryAttention": (0, 1, 2, 3, 4, 7, 8), "MatMulNBits": (0, 2)}
)
"""Operators, and which of their inputs are floating-point. All of their outputs are."""


class UseHalfContribOperators(ir.passes.InPlacePass):
    """`GroupQueryAttention` and `MatMulNBits` in fp16, between fp32 neighbours.

    Requires: their floating-point inputs are fp32 or fp16. Run it after `UseMixedPrecision`.
    Does: lets these operators read and write fp16. A Cast from fp16 before one, or to fp16 after one, goes.
        Their outputs that are graph outputs become fp16 if `in_half` names them, and stay fp32 otherwise.
    Ensures: no such operator reads or writes another floating-point type.
    """

    def __init__(self, in_half: Callable[[str], bool] = lambda name: False) -> None:
        super().__init__()
        self.in_half = in_half

    def requires(self, model: ir.Model) -> None:
        for node in nodes_of(model, *_OPERATORS, domain=CONTRIB):
            for value in _floating_inputs(node):
                if value.dtype not in (None, HALF, SINGLE) and weight_of(value) is None:
                    raise ir.passes.PreconditionError(
                        f"{node.name} reads {value.dtype}, expected fp32 or fp16"
                    )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        halves: dict[ir.Value, ir.Value] = {}
        for node in nodes_of(model, *_OPERATORS, domain=CONTRIB):
            for value in _floating_inputs(node):
                if value.dtype == HALF:
                    continue
                if value not in halves:
                    halves[value] = _half(model.graph, value, node)
                for i in _OPERATORS[node.op_type]:
                    if i < len(node.inputs) and node.inputs[i] is value:
                        node.replace_input_with(i, halves[value])
                modified = True
            for output in node.outputs:
                if output.dtype != HALF:
                    self._write_half(model.graph, node, output)
                    modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        for node in nodes_of(model, *_OPERATORS, domain=CONTRIB):
            if any(value.dtype != HALF for value in (*_floating_inputs(node), *node.outputs)):
                raise ir.passes.PostconditionError(f"{node.name} is not in fp16")

    def _write_half(self, graph: ir.Graph, node: ir.Node, output: ir.Value) -> None:
        """Make an output fp16, and give its fp32 readers a Cast of it."""
        output.dtype = HALF
        stays_fp32 = output.is_graph_output() and not self.in_half(output.name or "")
        readers = list(output.uses())
        to_half = [use.node for use in readers if _casts(use.node, HALF)]
        for cast in to_half:
            ir.convenience.replace_all_uses_with(cast.outputs[0], output)
            graph.remove(cast, safe=True)
        others = [use for use in readers if use.node not in to_half and use.node.op_type not in _OPERATORS]
        if not others and not stays_fp32:
            return
        cast = ir.node("Cast", [output], {"to": SINGLE}, name=f"{output.name}/Cast.wide")
        wide = cast.outputs[0]
        wide.type, wide.shape = ir.TensorType(SINGLE), output.shape
        wide.name = output.name if stays_fp32 else f"{output.name}.wide"
        for use in others:
            use.node.replace_input_with(use.idx, wide)
        if stays_fp32:
            output.name = f"{wide.name}.half"
            graph.outputs[graph.outputs.index(output)] = wide
        graph.insert_after(node, cast)


def _floating_inputs(node: ir.Node) -> list[ir.Value]:
    """Return the floating-point inputs that a node of `_OPERATORS` has."""
    given = [node.inputs[i] for i in _OPERATORS[node.op_type] if i < len(node.inputs)]
    return [value for value in given if value is not None]


def _half(graph: ir.Graph, value: ir.Value, before: ir.Node) -> ir.Value:
    """Return `value` in fp16: as a new weight, as the fp16 value that it is a Cast of, or by a new Cast."""
    weight = weight_of(value)
    if weight is not None:
        return cast_initializer(graph, weight, HALF, f"{weight.name}.half")
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
