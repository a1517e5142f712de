"""Matmuls get 8-bit operands behind `QuantizeLinear` and `DequantizeLinear`, as TensorRT fuses them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.weights import (
    ConstantMatMul,
    constant_matmuls,
    ensure_replaced,
    few_columns,
    initializer_once,
    largest_of,
)

Range = Callable[[str], tuple[float, float] | None]
"""Name of a weight -> smallest and largest value of the other operand, which a recipe measures; None leaves
the matmul as it is."""


@dataclass(frozen=True)
class Format:
    """An 8-bit number format: its dtype, its largest value, and whether it has integers only."""

    dtype: ir.DataType
    largest: float
    integer: bool


HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
FORMATS = {
    "int8": Format(ir.DataType.INT8, 127, True),
    "fp8": Format(ir.DataType.FLOAT8E4M3FN, 448, False),
}


class QuantizeOperands(ir.passes.InPlacePass):
    """Weights with a scale per output, activations with one per tensor; symmetric.

    Requires: the operands of a chosen matmul are fp32.
    Does: takes each `MatMul` with an initializer [K, N], or a Cast of one, on the right for which `range_of`
        is not None. Its left operand goes through QuantizeLinear and DequantizeLinear, its weight becomes
        DequantizeLinear of an 8-bit initializer; all scales are fp16. Matmuls that
        read one value in one range share its QuantizeLinear. Weights are rounded when the file is written,
        one at a time.
    Ensures: no chosen matmul is left. `UseMixedPrecision` removes the Casts after DequantizeLinear to fp16,
        so that both operands reach the matmul directly (not checked).
    """

    def __init__(self, kind: str, range_of: Range) -> None:
        """`kind`: a key of `FORMATS`."""
        super().__init__()
        self.format = FORMATS[kind]
        self.range_of = range_of

    def requires(self, model: ir.Model) -> None:
        for matmul, _ in self._chosen(model):
            for value in matmul.node.inputs:
                if value is None or value.dtype not in (None, SINGLE):
                    raise ir.passes.PreconditionError(f"{matmul.node.name}: expected operands in fp32")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        chosen = self._chosen(model)
        walk = _Walk(model.graph, self.format)
        for matmul, (low, high) in chosen:
            walk.replace(matmul, max(abs(low), abs(high)))
        return ir.passes.PassResult(model, bool(chosen))

    def ensures(self, model: ir.Model) -> None:
        ensure_replaced([matmul for matmul, _ in self._chosen(model)])

    def _chosen(self, model: ir.Model) -> list[tuple[ConstantMatMul, tuple[float, float]]]:
        ranges = [(matmul, self.range_of(matmul.name)) for matmul in constant_matmuls(model.graph)]
        return [(matmul, one) for matmul, one in ranges if one is not None]


class _Walk:
    """Gives the matmuls of a graph, front to back, other operands."""

    def __init__(self, graph: ir.Graph, form: Format) -> None:
        self.graph = graph
        self.form = form
        self._quantized: dict[tuple[ir.Value | None, float], list[ir.Value]] = {}

    def replace(self, matmul: ConstantMatMul, largest: float) -> None:
        left, shape = matmul.node.inputs[0], (matmul.inputs, matmul.outputs)
        key = (left, largest)
        if key not in self._quantized:
            self._quantized[key] = self._quantize(matmul, largest)
        rounded, scales = (partial(read, matmul.weight, self.form) for read in (_rounded, _scales))
        weight = [
            initializer_once(self.graph, f"{matmul.name}.q8", self.form.dtype, shape, rounded),
            initializer_once(self.graph, f"{matmul.name}.scales", HALF, shape[1:], scales),
        ]
        steps = self._dequantize(matmul, "input", self._quantized[key])
        weights = self._dequantize(matmul, "weight", weight, axis=1)
        steps.shape, weights.shape = left.shape if left is not None else None, ir.Shape(shape)
        matmul.node.replace_input_with(0, steps)
        matmul.node.replace_input_with(1, weights)

    def _quantize(self, matmul: ConstantMatMul, largest: float) -> list[ir.Value]:
        """Return a matmul's left operand in 8 bits, its scale and its zero point."""
        step = np.maximum(largest / self.form.largest, np.finfo(np.float16).tiny).astype(np.float16)
        scale = self._constant(f"{matmul.node.name}.input.scale", step)
        zero = self._constant(f"{matmul.node.name}.input.zero", np.zeros((), self.form.dtype.numpy()))
        left = matmul.node.inputs[0]
        assert left is not None
        narrow = self._op(matmul, "input.narrow", "Cast", [left], HALF, to=HALF)
        return [
            self._op(matmul, "input.q8", "QuantizeLinear", [narrow, scale, zero], self.form.dtype),
            scale,
            zero,
        ]

    def _dequantize(self, matmul: ConstantMatMul, name: str, inputs: list[ir.Value], **axis: int) -> ir.Value:
        """Return `inputs` (integers, scale, zero point) as a matmul reads them, in fp32."""
        value = self._op(matmul, f"{name}.rounded", "DequantizeLinear", inputs, HALF, **axis)
        return self._op(matmul, name, "Cast", [value], SINGLE, to=SINGLE)

    def _op(
        self,
        matmul: ConstantMatMul,
        name: str,
        op_type: str,
        inputs: list[ir.Value],
        dtype: ir.DataType,
        **attributes: int,
    ) -> ir.Value:
        """Add a node before a matmul and return its output."""
        name = f"{matmul.node.name}.{name}"
        node = ir.node(op_type, inputs, attributes, num_outputs=1, name=f"{name}/{op_type}")
        value = node.outputs[0]
        value.name, value.type = name, ir.TensorType(dtype)
        self.graph.insert_before(matmul.node, node)
        return value

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value


def _scales(stored: ir.TensorProtocol, form: Format) -> np.ndarray:
    """Return the scale of each column, [N] fp16: its largest magnitude becomes the format's."""
    largest = largest_of(np.asarray(stored.numpy()))
    return np.maximum(largest / form.largest, np.finfo(np.float16).tiny).astype(np.float16)


def _rounded(stored: ir.TensorProtocol, form: Format) -> np.ndarray:
    """Return a weight [K, N] in the format, rounded to nearest."""
    weight, scales = np.asarray(stored.numpy()), _scales(stored, form).astype(np.float32)
    out = np.empty(weight.shape, form.dtype.numpy())
    for some in few_columns(weight.shape[1]):
        steps = (weight[:, some].astype(np.float32) / scales[some]).clip(-form.largest, form.largest)
        out[:, some] = (np.rint(steps) if form.integer else steps).astype(out.dtype)
    return out
