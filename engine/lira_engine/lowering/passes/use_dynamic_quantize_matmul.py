"""Products with constant weights in 8-bit integers, activations rounded as they come."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.nodes import replace_node
from lira_engine.lowering.weights import ConstantMatMul, constant_matmuls, lazy_initializer

SMALLEST = 128
"""Inputs and outputs from which on rounding the activations costs less than it saves."""


class UseDynamicQuantizeMatMul(ir.passes.InPlacePass):
    """8-bit weights with a scale per output; 8-bit activations with one scale per product.

    Requires: `MatMul` with an initializer [K, N], or a Cast of one, on the right.
    Does: replaces those with K and N of 128 or more by `com.microsoft.DynamicQuantizeMatMul`.
    Ensures: no such MatMul is left.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for product in constant_matmuls(model.graph):
            if min(product.inputs, product.outputs) >= SMALLEST:
                self._replace(model.graph, product)
                modified = True
        if modified:
            model.graph.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified)

    def _replace(self, graph: ir.Graph, product: ConstantMatMul) -> None:
        name, matmul, shape = product.name, product.node, (product.inputs, product.outputs)
        integers, scales = (
            graph.initializers.get(f"{name}.{part}")
            or lazy_initializer(graph, f"{name}.{part}", dtype, size, partial(read, product.weight))
            for part, dtype, size, read in (
                ("q8", ir.DataType.INT8, shape, quantized),
                ("scales", ir.DataType.FLOAT, shape[1:], scales_of),
            )
        )
        node = ir.node(
            "DynamicQuantizeMatMul",
            [matmul.inputs[0], integers, scales],
            domain="com.microsoft",
            num_outputs=1,
            name=matmul.name,
        )
        replace_node(graph, matmul, [node], node.outputs)


def scales_of(stored: ir.TensorProtocol) -> np.ndarray:
    """Per output [N] float32: the largest magnitude becomes 127; an output of zeros has the scale 1."""
    largest = np.abs(stored.numpy()).max(axis=0).astype(np.float32)
    return np.where(largest > 0, largest / np.float32(127), np.float32(1))


def quantized(stored: ir.TensorProtocol) -> np.ndarray:
    """[K, N] int8, rounded to nearest."""
    return np.rint(stored.numpy().astype(np.float32) / scales_of(stored)).astype(np.int8)
