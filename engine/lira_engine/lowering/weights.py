"""Constant weights of a graph: to find, and to make anew when a file is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir


def weight_of(value: ir.Value | None) -> ir.Value | None:
    """The initializer behind a value that is one, or a Cast of one; None where there is none."""
    if value is None or value.is_initializer():
        return value
    cast = value.producer()
    if cast is None or (cast.domain, cast.op_type) != ("", "Cast"):
        return None
    source = cast.inputs[0]
    return source if source is not None and source.is_initializer() else None


def lazy_initializer(
    graph: ir.Graph, name: str, dtype: ir.DataType, shape: tuple[int, ...], read: Callable[[], np.ndarray]
) -> ir.Value:
    """A new initializer whose values are computed when they are asked for, and not kept."""
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    value.const_value = ir.LazyTensor(
        lambda: ir.tensor(read(), name=name), dtype=dtype, shape=ir.Shape(shape), name=name
    )
    graph.register_initializer(value)
    return value


def converted(graph: ir.Graph, weight: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
    """A new initializer: `weight`, which is one, in another dtype."""
    stored, shape = weight.const_value, weight.shape
    assert stored is not None and shape is not None
    sizes = tuple(int(size) for size in shape)  # type: ignore[arg-type]
    return lazy_initializer(graph, name, dtype, sizes, partial(_converted, stored, dtype))


def _converted(stored: ir.TensorProtocol, dtype: ir.DataType) -> np.ndarray:
    return np.asarray(stored.numpy()).astype(dtype.numpy())


@dataclass(frozen=True)
class ConstantMatMul:
    """`node`: a MatMul of x [..., inputs] with the initializer `name`, or a Cast of it, whose values are
    `weight` [inputs, outputs]."""

    node: ir.Node
    name: str
    weight: ir.TensorProtocol
    inputs: int
    outputs: int


def constant_matmuls(graph: ir.Graph) -> list[ConstantMatMul]:
    """In the graph's order. A list: who asks changes the graph."""
    found = []
    for node in graph:
        right = weight_of(node.inputs[1]) if (node.domain, node.op_type) == ("", "MatMul") else None
        if right is None or right.shape is None or len(right.shape) != 2:
            continue
        assert right.name is not None and right.const_value is not None
        inputs, outputs = (int(size) for size in right.shape)  # type: ignore[arg-type]
        found.append(ConstantMatMul(node, right.name, right.const_value, inputs, outputs))
    return found
