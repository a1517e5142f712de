"""Products of 8-bit operands behind `QuantizeLinear` and `DequantizeLinear`, as TensorRT fuses them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.weights import ConstantMatMul, constant_matmuls, lazy_initializer

Range = Callable[[str], float | None]
"""Name of a weight -> largest magnitude of what it is multiplied with, which a recipe measures; None leaves
the product as it is."""


@dataclass(frozen=True)
class Format:
    """An 8-bit number: its dtype, its largest value, and whether it has no fraction."""

    dtype: ir.DataType
    largest: float
    integer: bool


FORMATS = {
    "int8": Format(ir.DataType.INT8, 127, True),
    "fp8": Format(ir.DataType.FLOAT8E4M3FN, 448, False),
}


class QuantizeOperands(ir.passes.InPlacePass):
    """Weights with a scale per output, activations with one per tensor; symmetric.

    Requires: `MatMul` with an initializer [K, N], or a Cast of one, on the right, fp32 arithmetic.
    Does: puts the chosen products' left input through QuantizeLinear and DequantizeLinear, and
        DequantizeLinear of an 8-bit initializer in the weight's place, all scales fp16. Weights are rounded
        when the file is written, one at a time.
    Ensures: the Casts around them are what `UseMixedPrecision` takes away, so that both operands reach the
        product straight from DequantizeLinear.
    """

    def __init__(self, kind: str, range_of: Range) -> None:
        """`kind`: a key of `FORMATS`."""
        super().__init__()
        self.format = FORMATS[kind]
        self.range_of = range_of

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for product in constant_matmuls(model.graph):
            largest = self.range_of(product.name)
            if largest is not None:
                self._replace(model.graph, product, largest)
                modified = True
        return ir.passes.PassResult(model, modified)

    def _replace(self, graph: ir.Graph, product: ConstantMatMul, largest: float) -> None:
        stored, name, left = product.weight, product.name, product.node.inputs[0]
        assert left is not None
        shape, half = (product.inputs, product.outputs), ir.DataType.FLOAT16
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
        graph.insert_before(product.node, tape.nodes)
        product.node.replace_input_with(0, single)
        product.node.replace_input_with(1, wide)


def _scales(stored: ir.TensorProtocol, form: Format) -> np.ndarray:
    """[N] fp16: each column's largest magnitude becomes the format's."""
    largest = np.abs(np.asarray(stored.numpy()).astype(np.float32)).max(axis=0)
    return np.maximum(largest / form.largest, np.finfo(np.float16).tiny).astype(np.float16)


def _rounded(stored: ir.TensorProtocol, form: Format) -> np.ndarray:
    weight = np.asarray(stored.numpy()).astype(np.float32) / _scales(stored, form).astype(np.float32)
    weight = weight.clip(-form.largest, form.largest)
    return (np.rint(weight) if form.integer else weight).astype(form.dtype.numpy())
