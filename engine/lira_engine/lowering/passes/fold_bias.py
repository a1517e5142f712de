"""Biases and layer scales after 8-bit matmuls go into the matmuls."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.nodes import CONTRIB, nodes_of, replace_node
from lira_engine.lowering.weights import lazy_initializer

_SCALES = {"DynamicQuantizeMatMul": 2, "MatMulIntegerToFloat": 3}
"""By operator: position of the weight's scales among the inputs. The bias is the last input of both."""
_BIAS = {"DynamicQuantizeMatMul": 4, "MatMulIntegerToFloat": 6}
EIGHT_BITS = tuple(_BIAS)


class FoldBias(ir.passes.InPlacePass):
    """A bias costs an 8-bit matmul nothing, and ONNX Runtime's own BiasGelu takes 1.8 times as long as Gelu.

    Requires: nothing. Run it after the passes that make 8-bit matmuls.
    Does: where the output [.., N] of a `DynamicQuantizeMatMul` or `MatMulIntegerToFloat` is read by an `Add`
        of an initializer [N] alone, gives the matmul this bias; where the result is read by a `Mul` with an
        initializer [N] alone (a layer scale), multiplies the scales of the weight's columns and the bias by
        it. They are computed when the file is written.
    Ensures: no such Add or Mul is left. Results are those of before up to fp32 rounding.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for matmul in nodes_of(model, *_SCALES, domain=CONTRIB):
            add = _only_reader(matmul, "Add")
            if add is not None and _bias(matmul) is None:
                matmul = _with_bias(model.graph, matmul, add)
                modified = True
            mul = _only_reader(matmul, "Mul")
            if mul is not None:
                _scale(model.graph, matmul, mul)
                modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        for matmul in nodes_of(model, *_SCALES, domain=CONTRIB):
            add, mul = _only_reader(matmul, "Add"), _only_reader(matmul, "Mul")
            if mul is not None or (add is not None and _bias(matmul) is None):
                raise ir.passes.PostconditionError(f"a bias or scale is left after {matmul.name}")


def _bias(matmul: ir.Node) -> ir.Value | None:
    position = _BIAS[matmul.op_type]
    return matmul.inputs[position] if len(matmul.inputs) > position else None


def _only_reader(matmul: ir.Node, op_type: str) -> ir.Node | None:
    """Return the node of this type that alone reads a matmul's output, with an initializer [N] on the other
    side; None if there is none."""
    output, scales = matmul.outputs[0], matmul.inputs[_SCALES[matmul.op_type]]
    readers = [use.node for use in output.uses()]
    if len(readers) != 1 or output.is_graph_output():
        return None
    (node,) = readers
    if (node.domain, node.op_type) != ("", op_type):
        return None
    other = _other(node, output)
    if other is None or scales is None or not other.is_initializer() or other.shape != scales.shape:
        return None
    return node


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Return the operand of a node that is not `value`."""
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _with_bias(graph: ir.Graph, matmul: ir.Node, add: ir.Node) -> ir.Node:
    """Return a matmul that adds the bias itself, in the place of the two nodes."""
    inputs = list(matmul.inputs)
    inputs += [None] * (_BIAS[matmul.op_type] - len(inputs)) + [_other(add, matmul.outputs[0])]
    node = ir.node(matmul.op_type, inputs, domain=CONTRIB, num_outputs=1, name=matmul.name)
    graph.insert_before(matmul, node)
    replace_node(graph, add, [], node.outputs)
    graph.remove(matmul, safe=True)
    return node


def _scale(graph: ir.Graph, matmul: ir.Node, mul: ir.Node) -> None:
    """Multiply a matmul's columns by the constant of the node after it, which goes."""
    factor = _other(mul, matmul.outputs[0])
    for position in (_SCALES[matmul.op_type], _BIAS[matmul.op_type]):
        value = matmul.inputs[position] if position < len(matmul.inputs) else None
        if value is not None:
            matmul.replace_input_with(position, _product(graph, matmul, value, factor))
    replace_node(graph, mul, [], matmul.outputs)


def _product(graph: ir.Graph, matmul: ir.Node, value: ir.Value, factor: ir.Value | None) -> ir.Value:
    """Return value * factor, initializers [N], as an initializer of one matmul."""
    assert factor is not None and value.shape is not None
    stored, scale = value.const_value, factor.const_value
    assert stored is not None and scale is not None
    return lazy_initializer(
        graph,
        f"{value.name}/{matmul.name}.scaled",
        ir.DataType.FLOAT,
        tuple(int(size) for size in value.shape),  # type: ignore[arg-type]
        partial(_multiplied, stored, scale),
    )


def _multiplied(stored: ir.TensorProtocol, scale: ir.TensorProtocol) -> np.ndarray:
    return np.asarray(stored.numpy(), np.float32) * np.asarray(scale.numpy(), np.float32)
