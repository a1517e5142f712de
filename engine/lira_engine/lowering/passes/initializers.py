"""Constant weights of a graph: those kept in 16 bits, and new ones that are made when a file is written."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


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


class WidenWeights(ir.passes.InPlacePass):
    """Weights in 16 bits become fp32, for targets that compute with nothing else.

    Requires: nothing.
    Does: puts an fp32 initializer in the place of each Cast of an fp16 or bf16 one to fp32; its values are
        converted when the file is written, one weight at a time. Weights that nothing reads any more go.
    Ensures: no Cast of a 16-bit initializer to fp32.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, modified = model.graph, False
        for cast in list(graph):
            weight = cast.inputs[0] if (cast.domain, cast.op_type) == ("", "Cast") else None
            if weight is None or not weight.is_initializer() or weight.dtype not in _HALF:
                continue
            if cast.attributes["to"].as_int() != ir.DataType.FLOAT:
                continue
            if cast.outputs[0].uses():
                wide = converted(graph, weight, ir.DataType.FLOAT, f"{weight.name}.wide")
                ir.convenience.replace_all_uses_with(cast.outputs[0], wide)
            graph.remove(cast, safe=True)
            modified = True
        for name, weight in list(graph.initializers.items()):
            if weight.dtype in _HALF and not weight.uses():
                del graph.initializers[name]
        return ir.passes.PassResult(model, modified)
