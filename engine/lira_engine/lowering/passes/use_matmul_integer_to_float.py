"""Matmuls with constant weights become ONNX Runtime's `MatMulIntegerToFloat`: inputs in a fixed range."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.nodes import CONTRIB, replace_node
from lira_engine.lowering.passes.quantize_operands import Range
from lira_engine.lowering.weights import (
    ConstantMatMul,
    constant_matmuls,
    eight_bits,
    ensure_replaced,
)

FLOAT, UINT8 = ir.DataType.FLOAT, ir.DataType.UINT8


class UseMatMulIntegerToFloat(ir.passes.InPlacePass):
    """8-bit weights with a scale per output; unsigned 8-bit activations with one scale and zero point.

    CPUs multiply unsigned by signed integers up to 20 times faster than signed by signed ones. ONNX Runtime
    makes this operator itself of a MatMul between DequantizeLinear, but not where it has made a Gemm of the
    MatMul and an Add before.

    Requires: nothing.
    Does: replaces each `MatMul` with an initializer [K, N], or a Cast of one, on the right for which
        `range_of` is not None, by QuantizeLinear and `com.microsoft.MatMulIntegerToFloat`. Matmuls that read
        one value in one range share its QuantizeLinear. Weights are rounded when the file is written, one at
        a time.
    Ensures: no such matmul is left.
    """

    def __init__(self, range_of: Range) -> None:
        super().__init__()
        self.range_of = range_of

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        chosen = self._chosen(model)
        quantized: dict[tuple[ir.Value | None, float, float], list[ir.Value]] = {}
        for matmul, (low, high) in chosen:
            key = (matmul.node.inputs[0], low, high)
            if key not in quantized:
                quantized[key] = _quantize(model.graph, matmul, low, high)
            _replace(model.graph, matmul, quantized[key])
        if chosen:
            model.graph.opset_imports[CONTRIB] = 1
        return ir.passes.PassResult(model, bool(chosen))

    def ensures(self, model: ir.Model) -> None:
        ensure_replaced([matmul for matmul, _ in self._chosen(model)])

    def _chosen(self, model: ir.Model) -> list[tuple[ConstantMatMul, tuple[float, float]]]:
        ranges = [(matmul, self.range_of(matmul.name)) for matmul in constant_matmuls(model.graph)]
        return [(matmul, one) for matmul, one in ranges if one is not None]


def step_of(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the scale float32 and the zero point uint8, scalars, of values from `low` to `high`; zero is
    exact."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.maximum((high - low) / 255, np.finfo(np.float32).tiny).astype(np.float32)
    return scale, np.rint(np.clip(-low / scale, 0, 255)).astype(np.uint8)


def _quantize(graph: ir.Graph, matmul: ConstantMatMul, low: float, high: float) -> list[ir.Value]:
    """Return a matmul's left operand in integers, its scale and its zero point."""
    name = f"{matmul.node.name}.input"
    step = [
        _constant(graph, f"{name}.{end}", x)
        for end, x in zip(("scale", "zero"), step_of(low, high), strict=True)
    ]
    left = matmul.node.inputs[0]
    assert left is not None
    node = ir.node("QuantizeLinear", [left, *step], num_outputs=1, name=f"{name}/QuantizeLinear")
    value = node.outputs[0]
    value.name, value.type, value.shape = f"{name}.q8", ir.TensorType(UINT8), left.shape
    graph.insert_before(matmul.node, node)
    return [value, *step]


def _replace(graph: ir.Graph, matmul: ConstantMatMul, quantized: list[ir.Value]) -> None:
    integers, scale, zero = quantized
    weight, scales = eight_bits(graph, matmul)
    node = ir.node(
        "MatMulIntegerToFloat",
        [integers, weight, scale, scales, zero],
        domain=CONTRIB,
        num_outputs=1,
        name=matmul.node.name,
    )
    replace_node(graph, matmul.node, [node], node.outputs)


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
