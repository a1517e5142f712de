"""Where large channels can move from activations into weights, and by how much (SmoothQuant).

An activation in 8 bits has one step for all channels: a channel of 50 times the rest leaves the rest few
steps. Channels are divided by a scale each where the activation is made, and the weights that read it are
multiplied: the floats' result stays the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from lira_engine.engines.recipe import Smoothing
from lira_engine.lowering.weights import weight_of

ALPHA = 0.5
"""Share of a channel's size that goes into the weights."""

_NORMS = ("LayerNormalization", "RMSNormalization")
_FLOOR = 1e-5  # of the largest channel: what is smaller counts as this


def smoothing_groups(model: ir.Model) -> list[Smoothing]:
    """Return the scales that the portable graph of a stage can move, in its order. Reads no weights.

    A group is a norm, or a linear layer with or without Relu, or one factor of a product, whose result only
    matmuls with constant weights read. Left out: what is an output of the stage (hidden states) or read by
    anything else (residuals, positions), shared weights, and attention's values: the cache is an output, and
    in a packed qkv they have no weight of their own.
    """
    groups = []
    found: set[ir.Value] = set()
    for node in model.graph:
        left = node.inputs[0] if _constant_matmul(node) else None
        if left is None or left in found:
            continue
        found.add(left)
        divided = _divided(left)
        multiplied = [_matrix(use.node) for use in left.uses()] if _only_matmuls_read(left) else []
        weights = [weight for weight in multiplied if weight is not None]
        if divided and weights and len({*divided, *weights}) == len(divided) + len(weights):
            names = [_name(value) for value in divided]
            # The weight names a group: its layer may have other parameters, and none twice.
            groups.append(Smoothing(names[0], tuple(names), tuple(_name(weight) for weight in weights)))
    return groups


def smoothing_scale(
    channel_largest: np.ndarray, weights: Sequence[np.ndarray], alpha: float = ALPHA
) -> np.ndarray:
    """Return largest |x| ** alpha / largest |w| ** (1 - alpha) for each channel, [K] float32, positive.

    Args:
        channel_largest: [K], of the activations that are divided. weights: [K, N] each, which are multiplied.

    The geometric mean of the channels that live is 1: steps of a tensor depend on ratios only, and weights
    stay in the range of their type. A channel that is zero in the activations or the weights keeps its size.
    Source: Xiao et al., "SmoothQuant", equation 4.
    """
    activations = channel_largest.astype(np.float64)
    rows = np.max([np.abs(weight.astype(np.float32)).max(axis=1) for weight in weights], axis=0)
    alive = (activations > 0) & (rows > 0)
    scale = np.ones(len(activations))
    if alive.any():
        x, w = (np.maximum(one[alive], _FLOOR * one.max()) for one in (activations, rows.astype(np.float64)))
        logarithm = alpha * np.log(x) - (1 - alpha) * np.log(w)
        scale[alive] = np.exp(logarithm - logarithm.mean())
    return scale.astype(np.float32)


def _divided(value: ir.Value) -> list[ir.Value]:
    """Return the initializers whose last axis are the channels of `value`, such that dividing them divides
    it; empty if there are none, or if anything else would change."""
    node = value.producer()
    if node is None or node.domain != "":
        return []
    if node.op_type in _NORMS and _over_last_axis(node):
        return _unshared(node.inputs[1:])
    if node.op_type == "MatMul" and _constant_matmul(node):
        weight = _matrix(node)
        return [weight] if weight is not None else []
    if node.op_type == "Relu":
        return _inner(node.inputs[0])
    if node.op_type == "Add":
        return _linear(node.inputs[0], node.inputs[1]) or _linear(node.inputs[1], node.inputs[0])
    if node.op_type == "Mul":
        return _matmul_alone(node.inputs[0]) or _matmul_alone(node.inputs[1])
    return []


def _inner(value: ir.Value | None) -> list[ir.Value]:
    """Return what divides `value`, which one node reads and no output shows."""
    if value is None or value.is_graph_output() or len(value.uses()) != 1:
        return []
    return _divided(value)


def _matmul_alone(value: ir.Value | None) -> list[ir.Value]:
    """Return what divides a factor of a product: a linear layer's weight."""
    node = value.producer() if value is not None else None
    return _inner(value) if node is not None and node.op_type in ("MatMul", "Add") else []


def _linear(product: ir.Value | None, bias: ir.Value | None) -> list[ir.Value]:
    """Return weight and bias of a linear layer."""
    node = product.producer() if product is not None else None
    weight = _inner(product) if node is not None and node.op_type == "MatMul" else []
    offset = _unshared([bias])
    return [*weight, *offset] if weight and offset else []


def _only_matmuls_read(value: ir.Value) -> bool:
    return not value.is_graph_output() and all(
        use.idx == 0 and _constant_matmul(use.node) and _matrix(use.node) is not None for use in value.uses()
    )


def _constant_matmul(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != ("", "MatMul"):
        return False
    right = weight_of(node.inputs[1])
    return right is not None and right.shape is not None and len(right.shape) == 2


def _matrix(node: ir.Node) -> ir.Value | None:
    """Return the weight of a constant matmul; None if anything else reads it."""
    found = _unshared([node.inputs[1]])
    return found[0] if found else None


def _unshared(values: Sequence[ir.Value | None]) -> list[ir.Value]:
    """Return the initializers that `values` are, or are Casts of; empty unless one node reads each."""
    found = []
    for value in values:
        weight = weight_of(value)
        if value is None or weight is None or not weight.is_initializer():
            return []
        if any(len(one.uses()) != 1 or one.is_graph_output() for one in {value, weight}):
            return []
        found.append(weight)
    return found


def _over_last_axis(norm: ir.Node) -> bool:
    axis, x = norm.attributes.get_int("axis", -1), norm.inputs[0]
    return axis == -1 or (x is not None and x.shape is not None and axis == len(x.shape) - 1)


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name
