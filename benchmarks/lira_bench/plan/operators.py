"""Count the operations of a node: two for each multiply-add of a matmul, convolution or attention.

All else is left out, as a roofline's peak is not about it: elementwise nodes, normalisation, softmax,
resizing, layout. Sampling is an estimate (see `_sampling`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import onnx_ir as ir

from lira_bench.plan import polynomial
from lira_bench.plan.polynomial import Terms
from lira_engine.errors import LiraError
from lira_engine.lowering.passes.use_dynamic_quantize_matmul import SMALLEST
from lira_engine.lowering.weights import weight_of

Kind = Literal["linear", "dense", "conv", "attention", "sampling"]
"""linear: a matmul with a constant matrix that an int8 engine rounds (both sides of 128 or more); dense:
other matmuls; attention: queries with keys, weights with values."""

CONTEXT = "context"
"""Rows that a row of the language model attends to, itself included: the mean over the rows of a pass."""

VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity"})
"""Another shape for the same memory."""

# fmt: off
IN_PLACE = frozenset({
    "Add", "Cast", "Clip", "Div", "Erf", "Exp", "Gelu", "GroupNormalization", "LayerNormalization", "Max",
    "Min", "Mul", "Neg", "Not", "RMSNormalization", "Relu", "Sigmoid", "Softmax", "Sqrt", "Sub", "Tanh",
    "Where",
})
"""Operators that may write over an input of the same size that has no other reader."""

_NOT_COUNTED = VIEWS | IN_PLACE | {
    "Abs", "And", "ArgMax", "CastLike", "Ceil", "Concat", "Constant", "ConstantOfShape", "Cos", "CumSum",
    "Equal", "Expand", "Floor", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Less",
    "LessOrEqual", "Log", "Mod", "Or", "Pad", "Pow", "Range", "Reciprocal", "ReduceL2", "ReduceMax",
    "ReduceMean", "ReduceMin", "ReduceSum", "Resize", "RotaryEmbedding", "Round", "ScatterND", "Shape", "Sin",
    "Size", "Slice", "Split", "TensorScatter", "Tile", "TopK", "Transpose",
}
# fmt: on


def shape_of(value: ir.Value | None) -> list[int | str]:
    """Return the sizes of a value, numbers or names. Raises LiraError if the graph lacks them."""
    if value is None or value.shape is None:
        name = "a value" if value is None else value.name
        raise LiraError(f"the graph does not say the shape of {name}: export the bundle again")
    sizes: list[int | str] = []
    for size in value.shape:
        if isinstance(size, int):
            sizes.append(size)
        elif size.value is not None and size.value.isidentifier():
            sizes.append(size.value)
        else:
            raise LiraError(f"{value.name} has a size {size}: expected a number or a name")
    return sizes


def operations(node: ir.Node) -> tuple[Kind, Terms] | None:
    """Return the kind and number of a node's operations, None if none of them count.

    Raises LiraError for an unknown operator, which would make the count wrong.
    """
    count = _COUNTED.get((node.domain, node.op_type))
    if count is not None:
        return count(node)
    if node.domain == "" and node.op_type in _NOT_COUNTED:
        return None
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    known = ", ".join(sorted(".".join(filter(None, key)) for key in _COUNTED))
    raise LiraError(f"what {name} costs is not known; expected {known} or an operator without matmuls")


def is_linear(node: ir.Node) -> bool:
    """Return whether the node is a matmul with a constant matrix."""
    if (node.domain, node.op_type) != ("", "MatMul"):
        return False
    weight = weight_of(node.inputs[1])
    return weight is not None and weight.shape is not None and len(weight.shape) == 2


def _matmul(node: ir.Node) -> tuple[Kind, Terms]:
    right = shape_of(node.inputs[1])
    inner = right[-2] if len(right) > 1 else right[0]
    kind: Kind = "dense"
    if is_linear(node) and min(int(size) for size in right) >= SMALLEST:
        kind = "linear"
    return kind, polynomial.of([*shape_of(node.outputs[0]), inner], 2)


def _gemm(node: ir.Node) -> tuple[Kind, Terms]:
    left = shape_of(node.inputs[0])
    transposed = "transA" in node.attributes and node.attributes["transA"].as_int()
    return "dense", polynomial.of([*shape_of(node.outputs[0]), left[0 if transposed else 1]], 2)


def _conv(node: ir.Node) -> tuple[Kind, Terms]:
    """Count by the weight [out, in / groups, kernel...]: each output element sums over it."""
    return "conv", polynomial.of([*shape_of(node.outputs[0]), *shape_of(node.inputs[1])[1:]], 2)


def _conv_transpose(node: ir.Node) -> tuple[Kind, Terms]:
    """Count by the weight [in, out / groups, kernel...]: each input element is spread over it."""
    return "conv", polynomial.of([*shape_of(node.inputs[0]), *shape_of(node.inputs[1])[1:]], 2)


def _attention(node: ir.Node) -> tuple[Kind, Terms]:
    query, key, value = (shape_of(node.inputs[i]) for i in range(3))
    if len(query) != 4 or len(node.inputs) > 4:
        raise LiraError(
            f"{node.name}: expected Attention of query, key, value [B,H,S,D] and a mask, no cache"
        )
    scores = [*query[:3], key[2]]
    return "attention", polynomial.plus(
        polynomial.of([*scores, query[3]], 2), polynomial.of([*scores, value[3]], 2)
    )


def _cached_attention(node: ir.Node) -> tuple[Kind, Terms]:
    """Count the rows that each row attends to: engines skip empty and hidden slots."""
    return "attention", polynomial.of([*shape_of(node.inputs[0]), CONTEXT], 4)


def _grid_sample(node: ir.Node) -> tuple[Kind, Terms]:
    """Count four neighbours per sample."""
    return "sampling", polynomial.of(shape_of(node.outputs[0]), 8)


def _sampling(node: ir.Node) -> tuple[Kind, Terms]:
    """Count, per sample and channel, four neighbours and the weight of the sample. Finding the neighbours,
    which the channels of a head share, is left out."""
    value, weights = shape_of(node.inputs[0]), shape_of(node.inputs[2])
    return "sampling", polynomial.of([*weights, value[3]], 10)


_COUNTED: dict[tuple[str, str], Callable[[ir.Node], tuple[Kind, Terms]]] = {
    ("", "MatMul"): _matmul,
    ("", "Gemm"): _gemm,
    ("", "Conv"): _conv,
    ("", "ConvTranspose"): _conv_transpose,
    ("", "Attention"): _attention,
    ("", "GridSample"): _grid_sample,
    ("lira", "CachedAttention"): _cached_attention,
    ("lira", "DeformableSampling"): _sampling,
}
