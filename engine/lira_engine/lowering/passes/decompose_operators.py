"""`Attention`, `Gelu` and norms become operators that every ONNX parser has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from lira_engine.lowering.attention import MASKED, mask_of, require_plain, sizes_of
from lira_engine.lowering.nodes import (
    constant_scalar,
    constant_vector,
    nodes_of,
    replace_node,
    require_inlined,
    require_last_axis,
)


class DecomposeOperators(ir.passes.InPlacePass):
    """`Attention`, `Gelu`, `GroupNormalization` and `RMSNormalization` in matmuls, sums and softmax.

    Requires: functions inlined; `Attention` plain (4D, as many KV heads as heads, a boolean mask or none) and
        in fp32; exact `Gelu`; `RMSNormalization` over the last axis; `GroupNormalization` of opset 21 (a
        scale per channel) and static shape.
    Does: replaces each by its definition in the standard.
    Ensures: none of the four is left. What replaces them needs opset 18 (not checked).
    """

    def requires(self, model: ir.Model) -> None:
        require_inlined(model)
        for node in nodes_of(model, *_BODIES):
            require_decomposable(model, node)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return decompose(model, nodes_of(model, *_BODIES))

    def ensures(self, model: ir.Model) -> None:
        for node in nodes_of(model, *_BODIES):
            raise ir.passes.PostconditionError(f"{node.name} is left, a {node.op_type}")


def decompose(model: ir.Model, nodes: Sequence[ir.Node]) -> ir.passes.PassResult:
    """Replace nodes that `require_decomposable` accepts."""
    for node in nodes:
        tape = ir.tape.Tape()
        output = _BODIES[node.op_type](tape, node)
        for i, new in enumerate(tape.nodes):
            new.name = f"{node.name}.{i}"
        replace_node(model.graph, node, tape.nodes, [output])
    return ir.passes.PassResult(model, bool(nodes))


def require_decomposable(model: ir.Model, node: ir.Node) -> None:
    """Raise PreconditionError if a node is not as `DecomposeOperators` requires."""
    match node.op_type:
        case "Attention":
            sizes_of(node)
            require_plain(node, ir.DataType.FLOAT)
            mask = mask_of(node)
            if mask is not None and mask.dtype != ir.DataType.BOOL:
                raise ir.passes.PreconditionError(f"{node.name}: expected a boolean mask")
        case "Gelu":
            if node.attributes.get_string("approximate", "none") != "none":
                raise ir.passes.PreconditionError(f"{node.name}: expected the exact Gelu")
        case "GroupNormalization":
            if model.opset_imports[""] < 21:
                raise ir.passes.PreconditionError(f"{node.name}: expected a scale per channel, of opset 21")
            shape = node.inputs[0].shape if node.inputs[0] is not None else None
            if not shape or not shape.is_static():
                raise ir.passes.PreconditionError(f"{node.name}: the shape of its input is not known")
        case "RMSNormalization":
            require_last_axis(node)


def _attention(tape: ir.tape.Tape, node: ir.Node) -> ir.Value:
    query, key, value = node.inputs[:3]
    scale = node.attributes.get_float("scale", sizes_of(node).head_size ** -0.5)
    scaled = tape.op("Mul", [query, constant_scalar(tape, scale)])
    scores = tape.op("MatMul", [scaled, tape.op("Transpose", [key], {"perm": [0, 1, 3, 2]})])
    mask = mask_of(node)
    if mask is not None:
        scores = tape.op("Where", [mask, scores, constant_scalar(tape, MASKED[ir.DataType.FLOAT])])
    return tape.op("MatMul", [tape.op("Softmax", [scores], {"axis": -1}), value])


def _gelu(tape: ir.tape.Tape, node: ir.Node) -> ir.Value:
    x = node.inputs[0]
    erf = tape.op("Erf", [tape.op("Mul", [x, constant_scalar(tape, math.sqrt(0.5))])])
    half = tape.op("Mul", [x, constant_scalar(tape, 0.5)])
    return tape.op("Mul", [half, tape.op("Add", [erf, constant_scalar(tape, 1)])])


def _group_norm(tape: ir.tape.Tape, node: ir.Node) -> ir.Value:
    x, scale, bias = node.inputs
    assert x is not None and x.shape is not None
    sizes = list(x.shape.numpy())
    groups = node.attributes["num_groups"].as_int()
    grouped = tape.op("Reshape", [x, constant_vector(tape, [sizes[0], groups, -1])])
    last = constant_vector(tape, [-1])
    centred = tape.op("Sub", [grouped, tape.op("ReduceMean", [grouped, last], {"keepdims": 1})])
    variance = tape.op("ReduceMean", [tape.op("Mul", [centred, centred]), last], {"keepdims": 1})
    epsilon = constant_scalar(tape, node.attributes.get_float("epsilon", 1e-5))
    size = tape.op("Sqrt", [tape.op("Add", [variance, epsilon])])
    normed = tape.op("Reshape", [tape.op("Div", [centred, size]), constant_vector(tape, sizes)])
    per_channel = constant_vector(tape, [-1, *[1] * (len(sizes) - 2)])
    scaled = tape.op("Mul", [normed, tape.op("Reshape", [scale, per_channel])])
    return tape.op("Add", [scaled, tape.op("Reshape", [bias, per_channel])])


def _rms_norm(tape: ir.tape.Tape, node: ir.Node) -> ir.Value:
    x, scale = node.inputs
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    mean = tape.op("ReduceMean", [tape.op("Mul", [x, x]), constant_vector(tape, [-1])], {"keepdims": 1})
    size = tape.op("Sqrt", [tape.op("Add", [mean, constant_scalar(tape, epsilon)])])
    return tape.op("Mul", [tape.op("Div", [x, size]), scale])


_BODIES: Mapping[str, Callable[[ir.tape.Tape, ir.Node], ir.Value]] = {
    "Attention": _attention,
    "Gelu": _gelu,
    "GroupNormalization": _group_norm,
    "RMSNormalization": _rms_norm,
}
