"""Operators of newer opsets in those that every ONNX parser has."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.attention import BLOCKED
from lira_engine.lowering.nodes import replace_node


class DecomposeOperators(ir.passes.InPlacePass):
    """`Attention`, `Gelu`, `GroupNormalization` and `RMSNormalization` in products, sums and softmax.

    Requires: functions inlined; `Attention` plain (4D, as many KV heads as heads, a boolean mask or none),
        exact `Gelu`, `RMSNormalization` over the last axis, `GroupNormalization` of opset 21 (a scale per
        channel) and known shape; fp32.
    Does: replaces each by what the standard says it means.
    Ensures: none of the four is left; opset 18 suffices for what takes their place.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return decompose(model, [node for node in model.graph if not node.domain and node.op_type in _BODIES])


def decompose(model: ir.Model, nodes: Sequence[ir.Node]) -> ir.passes.PassResult:
    for node in nodes:
        tape = ir.tape.Tape()
        output = _BODIES[node.op_type](tape, node)
        for i, new in enumerate(tape.nodes):
            new.name = f"{node.name}.{i}"
        replace_node(model.graph, node, tape.nodes, [output])
    return ir.passes.PassResult(model, bool(nodes))


def _attention(tape: ir.tape.Tape, node: ir.Node) -> ir.Value:
    query, key, value, *rest = node.inputs
    mask = rest[0] if rest else None
    extra = {"is_causal", "softcap", "q_num_heads", "kv_num_heads"} & {
        n for n, a in node.attributes.items() if a.value
    }
    if any(rest[1:]) or extra:
        raise ir.passes.PreconditionError(f"{node.name} is more than plain attention with a mask")
    _, columns = heads_of(node)
    scale = node.attributes["scale"].as_float() if "scale" in node.attributes else columns**-0.5
    scaled = tape.op("Mul", [query, _number(tape, scale)])
    scores = tape.op("MatMul", [scaled, tape.op("Transpose", [key], {"perm": [0, 1, 3, 2]})])
    if mask is not None:
        if mask.dtype != ir.DataType.BOOL:
            raise ir.passes.PreconditionError(f"{node.name}: expected a boolean mask")
        scores = tape.op("Where", [mask, scores, _number(tape, BLOCKED[ir.DataType.FLOAT])])
    return tape.op("MatMul", [tape.op("Softmax", [scores], {"axis": -1}), value])


def heads_of(node: ir.Node) -> tuple[int, int]:
    """Of the query [B, H, S, D]: H and D."""
    query = node.inputs[0]
    match list(query.shape) if query is not None and query.shape is not None else []:
        case [_, int(heads), _, int(columns)]:
            return heads, columns
    raise ir.passes.PreconditionError(f"{node.name}: expected a 4D query, its heads and their columns known")


def _gelu(tape: ir.tape.Tape, node: ir.Node) -> ir.Value:
    if node.attributes.get_string("approximate", "none") != "none":
        raise ir.passes.PreconditionError(f"{node.name}: expected the exact Gelu")
    x = node.inputs[0]
    erf = tape.op("Erf", [tape.op("Mul", [x, _number(tape, math.sqrt(0.5))])])
    half = tape.op("Mul", [x, _number(tape, 0.5)])
    return tape.op("Mul", [half, tape.op("Add", [erf, _number(tape, 1)])])


def _group_norm(tape: ir.tape.Tape, node: ir.Node) -> ir.Value:
    x, scale, bias = node.inputs
    shape = list(x.shape) if x is not None and x.shape is not None else []
    sizes = [size for size in shape if isinstance(size, int)]
    if not shape or len(sizes) < len(shape):
        raise ir.passes.PreconditionError(f"{node.name}: the shape of its input is not known")
    groups = node.attributes["num_groups"].as_int()
    grouped = tape.op("Reshape", [x, _vector(tape, [sizes[0], groups, -1])])
    last = _vector(tape, [-1])
    centred = tape.op("Sub", [grouped, tape.op("ReduceMean", [grouped, last], {"keepdims": 1})])
    variance = tape.op("ReduceMean", [tape.op("Mul", [centred, centred]), last], {"keepdims": 1})
    epsilon = _number(tape, node.attributes.get_float("epsilon", 1e-5))
    size = tape.op("Sqrt", [tape.op("Add", [variance, epsilon])])
    normed = tape.op("Reshape", [tape.op("Div", [centred, size]), _vector(tape, sizes)])
    per_channel = _vector(tape, [-1, *[1] * (len(sizes) - 2)])
    scaled = tape.op("Mul", [normed, tape.op("Reshape", [scale, per_channel])])
    return tape.op("Add", [scaled, tape.op("Reshape", [bias, per_channel])])


def _rms_norm(tape: ir.tape.Tape, node: ir.Node) -> ir.Value:
    x, scale = node.inputs
    if node.attributes.get_int("axis", -1) != -1:
        raise ir.passes.PreconditionError(f"{node.name}: expected a norm over the last axis")
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    mean = tape.op("ReduceMean", [tape.op("Mul", [x, x]), _vector(tape, [-1])], {"keepdims": 1})
    size = tape.op("Sqrt", [tape.op("Add", [mean, _number(tape, epsilon)])])
    return tape.op("Mul", [tape.op("Div", [x, size]), scale])


def _number(tape: ir.tape.Tape, value: float) -> ir.Value:
    return tape.op("Constant", [], {"value": ir.tensor(np.array(value, np.float32))})


def _vector(tape: ir.tape.Tape, values: list[int]) -> ir.Value:
    return tape.op("Constant", [], {"value_ints": values})


_BODIES: Mapping[str, Callable[[ir.tape.Tape, ir.Node], ir.Value]] = {
    "Attention": _attention,
    "Gelu": _gelu,
    "GroupNormalization": _group_norm,
    "RMSNormalization": _rms_norm,
}
