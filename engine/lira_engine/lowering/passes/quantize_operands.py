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
    lazy_initializer,
    require_unshared,
)

Range = Callable[[str], float | None]
"""Name of a weight -> largest magnitude of the other operand, which a recipe measures; None leaves the matmul
as it is."""


@dataclass(frozen=True)
class Format:
    """An 8-bit number format: its dtype, its largest value, and whether it has integers only."""

    dtype: ir.DataType
    largest: float
    integer: bool


FORMATS = {
    "int8": Format(ir.DataType.INT8, 127, True),
    "fp8": Format(ir.DataType.FLOAT8E4M3FN, 448, False),
}


class QuantizeOperands(ir.passes.InPlacePass):
    """Weights with a scale per output, activations with one per tensor; symmetric.

    Requires: a chosen weight belongs to one matmul, whose operands are fp32.
    Does: takes each `MatMul` with an initializer [K, N], or a Cast of one, on the right for which `range_of`
        is not None. Its left operand goes through QuantizeLinear and DequantizeLinear, its weight becomes
        DequantizeLinear of an 8-bit initializer; all scales are fp16. Weights are rounded when the file is
        written, one at a time.
    Ensures: no chosen matmul is left. `UseMixedPrecision` removes the Casts after DequantizeLinear, so that
        both operands reach the matmul directly (not checked).
    """

    def __init__(self, kind: str, range_of: Range) -> None:
        """`kind`: a key of `FORMATS`."""
        super().__init__()
        self.format = FORMATS[kind]
        self.range_of = range_of

    def requires(self, model: ir.Model) -> None:
        chosen = [matmul for matmul, _ in self._chosen(model)]
        require_unshared(chosen)
        for matmul in chosen:
            for value in matmul.node.inputs:
                if value is None or value.dtype not in (None, ir.DataType.FLOAT):
                    raise ir.passes.PreconditionError(f"{matmul.node.name}: expected operands in fp32")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        chosen = self._chosen(model)
        for matmul, largest in chosen:
            self._replace(model.graph, matmul, largest)
        return ir.passes.PassResult(model, bool(chosen))

    def ensures(self, model: ir.Model) -> None:
        ensure_replaced([matmul for matmul, _ in self._chosen(model)])

    def _chosen(self, model: ir.Model) -> list[tuple[ConstantMatMul, float]]:
        ranges = [(matmul, self.range_of(matmul.name)) for matmul in constant_matmuls(model.graph)]
        return [(matmul, largest) for matmul, largest in ranges if largest is not None]

    def _replace(self, graph: ir.Graph, matmul: ConstantMatMul, largest: float) -> None:
        stored, name, left = matmul.weight, matmul.name, matmul.node.inputs[0]
        assert left is not None
        shape, half = (matmul.inputs, matmul.outputs), ir.DataType.FLOAT16
        scales = partial(_scales, stored, self.format)
        rounded = partial(_rounded, stored, self.format)
        kept = lazy_initializer(graph, f"{name}.q8", self.format.dtype, shape, rounded)
        spread = lazy_initializer(graph, f"{name}.scales", half, shape[1:], scales)
        step = ir.tensor(np.array(largest / self.format.largest, np.float16), name=f"{name}.input_scale")
        zero = ir.tensor(np.zeros((), self.format.dtype.numpy()), name=f"{name}.input_zero")
        for tensor in (step, zero):
            graph.register_initializer(ir.Value(name=tensor.name, shape=tensor.shape, const_value=tensor))  # type: ignore[arg-type]
        input_scale, input_zero = (graph.initializers[str(tensor.name)] for tensor in (step, zero))

        tape = ir.tape.Tape()

        def op(op_type: str, inputs: list[ir.Value], dtype: ir.DataType, **attributes: int) -> ir.Value:
            value = tape.op(op_type, inputs, attributes)
            value.name, value.type = f"{name}.{len(tape.nodes)}", ir.TensorType(dtype)
            value.producer().name = f"{value.name}/{op_type}"  # type: ignore[union-attr]
            return value

        narrow = op("Cast", [left], half, to=half)
        integers = op("QuantizeLinear", [narrow, input_scale, input_zero], self.format.dtype)
        steps = op("DequantizeLinear", [integers, input_scale, input_zero], half)
        single = op("Cast", [steps], ir.DataType.FLOAT, to=ir.DataType.FLOAT)
        weights = op("DequantizeLinear", [kept, spread], half, axis=1)
        wide = op("Cast", [weights], ir.DataType.FLOAT, to=ir.DataType.FLOAT)
        single.shape, wide.shape = left.shape, ir.Shape(shape)
        graph.insert_before(matmul.node, tape.nodes)
        matmul.node.replace_input_with(0, single)
        matmul.node.replace_input_with(1, wide)


def _scales(stored: ir.TensorProtocol, form: Format) -> np.ndarray:
    """Return the scale of each column, [N] fp16: its largest magnitude becomes the format's."""
    largest = np.abs(np.asarray(stored.numpy()).astype(np.float32)).max(axis=0)
    return np.maximum(largest / form.largest, np.finfo(np.float16).tiny).astype(np.float16)


def _rounded(stored: ir.TensorProtocol, form: Format) -> np.ndarray:
    """Return a weight [K, N] in the format, rounded to nearest."""
    weight = np.asarray(stored.numpy()).astype(np.float32) / _scales(stored, form).astype(np.float32)
    weight = weight.clip(-form.largest, form.largest)
    return (np.rint(weight) if form.integer else weight).astype(form.dtype.numpy())
