"""Find the constant weights of a graph, and add weights that are computed when the file is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.int4_blocks import COLUMNS_AT_ONCE


def weight_of(value: ir.Value | None) -> ir.Value | None:
    """Return the initializer that `value` is, or is a Cast of; None for any other value."""
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
    """Add an initializer whose values `read` computes, anew each time that they are asked for."""
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    value.const_value = ir.LazyTensor(
        lambda: ir.tensor(read(), name=name), dtype=dtype, shape=ir.Shape(shape), name=name
    )
    graph.register_initializer(value)
    return value


def initializer_once(
    graph: ir.Graph, name: str, dtype: ir.DataType, shape: tuple[int, ...], read: Callable[[], np.ndarray]
) -> ir.Value:
    """Return the initializer `name` of the graph, which `lazy_initializer` adds if it is not there: several
    matmuls may read one weight."""
    return graph.initializers.get(name) or lazy_initializer(graph, name, dtype, shape, read)


def cast_initializer(graph: ir.Graph, weight: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
    """Add an initializer with the values of the initializer `weight` in another dtype."""
    stored, shape = weight.const_value, weight.shape
    assert stored is not None and shape is not None
    sizes = tuple(int(size) for size in shape)  # type: ignore[arg-type]
    return lazy_initializer(graph, name, dtype, sizes, partial(_cast, stored, dtype))


def _cast(stored: ir.TensorProtocol, dtype: ir.DataType) -> np.ndarray:
    return np.asarray(stored.numpy()).astype(dtype.numpy())


def append_zeros(weight: ir.Value, rows: int) -> None:
    """Append zeros [rows, ...] to an initializer, when it is read. It keeps its name and dtype."""
    stored, shape = weight.const_value, weight.shape
    assert stored is not None and shape is not None
    first, *others = (int(size) for size in shape)  # type: ignore[arg-type]
    weight.shape = ir.Shape([first + rows, *others])
    weight.const_value = ir.LazyTensor(
        partial(_longer, stored, rows), dtype=stored.dtype, shape=weight.shape, name=weight.name
    )


def _longer(stored: ir.TensorProtocol, rows: int) -> ir.TensorProtocol:
    array = np.asarray(stored.numpy())
    return ir.tensor(np.pad(array, [(0, rows), *[(0, 0)] * (array.ndim - 1)]), name=stored.name)


@dataclass(frozen=True)
class ConstantMatMul:
    """A MatMul with a constant right operand.

    Attributes:
        node: MatMul of x [..., inputs] with the initializer `name`, or with a Cast of it.
        weight: the initializer's values [inputs, outputs].
    """

    node: ir.Node
    name: str
    weight: ir.TensorProtocol
    inputs: int
    outputs: int


def constant_matmuls(graph: ir.Graph) -> list[ConstantMatMul]:
    """Return the matmuls with a constant matrix [inputs, outputs], in the graph's order. Reads no weights."""
    found = []
    for node in graph:
        right = weight_of(node.inputs[1]) if (node.domain, node.op_type) == ("", "MatMul") else None
        if right is None or right.shape is None or len(right.shape) != 2:
            continue
        assert right.name is not None and right.const_value is not None
        inputs, outputs = (int(size) for size in right.shape)  # type: ignore[arg-type]
        found.append(ConstantMatMul(node, right.name, right.const_value, inputs, outputs))
    return found


def require_unshared(matmuls: Sequence[ConstantMatMul]) -> None:
    """Raise PreconditionError if two of the matmuls read the same weight."""
    seen = set()
    for matmul in matmuls:
        if matmul.name in seen:
            raise ir.passes.PreconditionError(f"two matmuls read {matmul.name}, expected one")
        seen.add(matmul.name)


def ensure_replaced(matmuls: Sequence[ConstantMatMul]) -> None:
    """Raise PostconditionError for the first of the matmuls that a pass should have replaced."""
    for matmul in matmuls:
        raise ir.passes.PostconditionError(f"the matmul with {matmul.name} was not replaced")


def eight_bits(graph: ir.Graph, matmul: ConstantMatMul) -> tuple[ir.Value, ir.Value]:
    """Return a matmul's weight in integers and its scales (`rounded`), as initializers that are computed when
    the file is written; those of another matmul with the same weight if there is one."""
    name, shape = matmul.name, (matmul.inputs, matmul.outputs)
    return (
        initializer_once(graph, f"{name}.q8", ir.DataType.INT8, shape, lambda: rounded(matmul.weight)[0]),
        initializer_once(
            graph, f"{name}.scales", ir.DataType.FLOAT, shape[1:], lambda: rounded(matmul.weight)[1]
        ),
    )


def rounded(stored: ir.TensorProtocol) -> tuple[np.ndarray, np.ndarray]:
    """Return a weight [K, N] in integers [K, N] int8, rounded to nearest, and the scale of each output [N]
    float32: its largest magnitude becomes 127; 1 if all are 0."""
    return _rounded(stored)  # type: ignore[arg-type]  # a tensor is hashed by its identity


@lru_cache(maxsize=1)  # integers and scales of a weight are written one after the other
def _rounded(stored: ir.TensorProtocol) -> tuple[np.ndarray, np.ndarray]:
    weight = np.asarray(stored.numpy())
    integers, scales = np.empty(weight.shape, np.int8), np.empty(weight.shape[1], np.float32)
    for some in few_columns(weight.shape[1]):
        part = weight[:, some].astype(np.float32)
        largest = largest_of(part)
        scales[some] = np.where(largest > 0, largest / np.float32(127), np.float32(1))
        integers[:, some] = np.rint(part / scales[some]).astype(np.int8)
    return integers, scales


def largest_of(weight: np.ndarray) -> np.ndarray:
    """Return the largest magnitude of each column, [N] float32, of a matrix of any float dtype."""
    largest: np.ndarray = np.maximum(weight.max(axis=0), -weight.min(axis=0)).astype(np.float32)
    return largest


def few_columns(count: int) -> Iterator[slice]:
    """Yield a few columns at a time: several copies of the largest weight in fp32 exceed a board's memory."""
    for start in range(0, count, COLUMNS_AT_ONCE):
        yield slice(start, min(start + COLUMNS_AT_ONCE, count))
