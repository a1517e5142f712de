"""Matmuls with large constant weights become ONNX Runtime's `DynamicQuantizeMatMul`."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.nodes import CONTRIB, replace_node
from lira_engine.lowering.weights import (
    ConstantMatMul,
    constant_matmuls,
    ensure_replaced,
    lazy_initializer,
)

SMALLEST = 128
"""Inputs and outputs from which on 8-bit integers save more time than rounding the activations costs."""


class UseDynamicQuantizeMatMul(ir.passes.InPlacePass):
    """8-bit weights with a scale per output; 8-bit activations with one scale per matmul.

    Requires: nothing.
    Does: replaces each `MatMul` with an initializer [K, N], or a Cast of one, on the right, K and N 128 or
        more, by `com.microsoft.DynamicQuantizeMatMul`. Weights are rounded when the file is written, one at a
        time.
    Ensures: no such matmul is left.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        large = _large(model)
        for matmul in large:
            self._replace(model.graph, matmul)
        if large:
            model.graph.opset_imports[CONTRIB] = 1
        return ir.passes.PassResult(model, bool(large))

    def ensures(self, model: ir.Model) -> None:
        ensure_replaced(_large(model))

    def _replace(self, graph: ir.Graph, matmul: ConstantMatMul) -> None:
        name, shape = matmul.name, (matmul.inputs, matmul.outputs)
        integers, scales = (
            graph.initializers.get(f"{name}.{part}")
            or lazy_initializer(graph, f"{name}.{part}", dtype, size, partial(read, matmul.weight))
            for part, dtype, size, read in (
                ("q8", ir.DataType.INT8, shape, quantized),
                ("scales", ir.DataType.FLOAT, shape[1:], scales_of),
            )
        )
        node = ir.node(
            "DynamicQuantizeMatMul",
            [matmul.node.inputs[0], integers, scales],
            domain=CONTRIB,
            num_outputs=1,
            name=matmul.node.name,
        )
        replace_node(graph, matmul.node, [node], node.outputs)


def _large(model: ir.Model) -> list[ConstantMatMul]:
    return [one for one in constant_matmuls(model.graph) if min(one.inputs, one.outputs) >= SMALLEST]


def scales_of(stored: ir.TensorProtocol) -> np.ndarray:
    """Return the scale of each output, [N] float32: its largest magnitude becomes 127; 1 if all are 0."""
    largest = np.abs(stored.numpy()).max(axis=0).astype(np.float32)
    return np.where(largest > 0, largest / np.float32(127), np.float32(1))


def quantized(stored: ir.TensorProtocol) -> np.ndarray:
    """Return the weight in integers, [K, N] int8, rounded to nearest."""
    return np.rint(stored.numpy().astype(np.float32) / scales_of(stored)).astype(np.int8)
