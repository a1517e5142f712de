"""Constants whose values repeat every few elements are written out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.nodes import nodes_of
from lira_engine.lowering.weights import initializer_once

SHORT = 16
"""Elements in a row below which ONNX Runtime spends its time between rows: 10 times that of long ones."""
FEWEST = 1 << 14
"""Elements of the other operand below which time does not matter."""
LARGEST = 32 << 20
"""Bytes that a written-out constant may have."""


class ExpandConstants(ir.passes.InPlacePass):
    """Sums and products with constants in long rows, such as those that make sampling points of offsets.

    Requires: nothing.
    Does: where an `Add` or `Mul` of a large value of known inner shape with an initializer broadcasts it over
        inner axes, so that fewer than 16 elements follow each other, writes the initializer out along them,
        if it stays below 32 MiB. Equal ones are written once.
    Ensures: no such constant is left. Results stay bit for bit.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in nodes_of(model, "Add", "Mul"):
            for position, shape in _wanted(node):
                node.replace_input_with(position, _written_out(model.graph, node.inputs[position], shape))
                modified = True
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        for node in nodes_of(model, "Add", "Mul"):
            if _wanted(node):
                raise ir.passes.PostconditionError(f"{node.name} still broadcasts a constant in short rows")


def _wanted(node: ir.Node) -> list[tuple[int, tuple[int, ...]]]:
    """Return the position of a node's constant, and the shape to write it out to; nothing for others."""
    for position in (0, 1):
        constant, other = node.inputs[position], node.inputs[1 - position]
        if constant is None or other is None or not constant.is_initializer() or other.is_initializer():
            continue
        if constant.shape is None or other.shape is None or len(constant.shape) > len(other.shape):
            continue
        found = _expanded([int(size) for size in constant.shape], list(other.shape))  # type: ignore[arg-type]
        if found is not None:
            return [(position, found)]
    return []


def _expanded(constant: Sequence[int], other: Sequence[int | ir.SymbolicDim]) -> tuple[int, ...] | None:
    """Return the shape of a constant that is written out along the inner axes of the other operand."""
    sizes = [1] * (len(other) - len(constant)) + list(constant)
    if math.prod(constant) == 1 or _count(other) < FEWEST or _row(sizes, other) >= SHORT:
        return None
    first = next(i for i, size in enumerate(sizes) if size != 1)
    while first > 0 and _count(other[first:]) < 8 * SHORT:
        first -= 1
    inner = [size for size in other[first:] if isinstance(size, int)]
    if len(inner) < len(other) - first or 4 * _count(inner) > LARGEST or inner == sizes[first:]:
        return None
    return tuple(inner)


def _row(sizes: Sequence[int], other: Sequence[int | ir.SymbolicDim]) -> int:
    """Return how many elements follow each other that all have their own element of a constant, or all the
    same one."""
    row, repeated = 1, None
    for size, whole in zip(reversed(sizes), reversed(other), strict=True):
        if whole == 1:
            continue
        if repeated not in (None, size != whole) or not isinstance(whole, int):
            break
        row, repeated = row * whole, size != whole
    return row


def _count(sizes: Sequence[int | ir.SymbolicDim]) -> int:
    return math.prod(size for size in sizes if isinstance(size, int))


def _written_out(graph: ir.Graph, constant: ir.Value | None, shape: tuple[int, ...]) -> ir.Value:
    assert constant is not None and constant.const_value is not None and constant.dtype is not None
    name = f"{constant.name}.{'x'.join(map(str, shape))}"
    return initializer_once(
        graph, name, constant.dtype, shape, partial(_broadcast, constant.const_value, shape)
    )


def _broadcast(stored: ir.TensorProtocol, shape: tuple[int, ...]) -> np.ndarray:
    return np.ascontiguousarray(np.broadcast_to(np.asarray(stored.numpy()), shape))
