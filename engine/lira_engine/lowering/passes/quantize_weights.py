"""Weights become INT4 behind the standard's `DequantizeLinear`, as TensorRT reads them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.int4_blocks import (
    Blocks,
    Digit,
    WeightBits,
    integers_of,
    quantize_symmetric,
    rounded_by,
)
from lira_engine.lowering.weights import (
    ConstantMatMul,
    constant_matmuls,
    ensure_replaced,
    few_columns,
    initializer_once,
)

Choice = Callable[[str, int], WeightBits | None]
"""(name, K) -> how to store a weight, in blocks that divide K; None leaves it as it is."""
SYMMETRIC = rounded_by(quantize_symmetric)


class QuantizeWeights(ir.passes.InPlacePass):
    """Weight-only quantization in standard operators.

    Requires: the block of a chosen weight is a divisor of its inputs.
    Does: takes each `MatMul` with an initializer [K, N] that `choose` wants, or a Cast of it, on the right,
        and puts `DequantizeLinear` of an INT4 initializer (blocks along K, fp16 scales) and a Cast to fp32 in
        the weight's place. Eight bits are the sum of two such matmuls, the second with the rounding error of
        the first. `digit` rounds weights, to positive scales that fp16 has, when the file is written, one at
        a time; a weight of several matmuls once. An odd N gets a column of zeros, which a `Slice` after the
        matmul removes.
    Ensures: no chosen matmul is left. INT4 weights have an even number of columns, so that the two integers
        of a byte are of one row, as parsers before TensorRT 10.15 want. Opset 21, the first with block_size,
        suffices (not checked).
    """

    def __init__(self, choose: Choice, digit: Digit = SYMMETRIC) -> None:
        super().__init__()
        self.choose = choose
        self.digit = digit

    def requires(self, model: ir.Model) -> None:
        for matmul, stored in self._chosen(model):
            if matmul.inputs % stored.block:
                raise ir.passes.PreconditionError(
                    f"{matmul.name}: {matmul.inputs} inputs are no multiple of the block {stored.block}"
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        chosen = self._chosen(model)
        for matmul, stored in chosen:
            self._replace(model.graph, matmul, stored)
        return ir.passes.PassResult(model, bool(chosen))

    def ensures(self, model: ir.Model) -> None:
        ensure_replaced([matmul for matmul, _ in self._chosen(model)])
        for name, weight in model.graph.initializers.items():
            if weight.dtype == ir.DataType.INT4 and weight.shape is not None and int(weight.shape[-1]) % 2:  # type: ignore[arg-type]
                raise ir.passes.PostconditionError(
                    f"{name} has {weight.shape[-1]} columns, expected an even number"
                )

    def _chosen(self, model: ir.Model) -> list[tuple[ConstantMatMul, WeightBits]]:
        found = constant_matmuls(model.graph)
        choices = [(matmul, self.choose(matmul.name, matmul.inputs)) for matmul in found]
        return [(matmul, stored) for matmul, stored in choices if stored is not None]

    def _replace(self, graph: ir.Graph, matmul: ConstantMatMul, stored: WeightBits) -> None:
        last = matmul.node
        last.replace_input_with(1, self._dequantized(graph, matmul, stored.block, 0))
        if stored.bits == 8:
            last = _add_matmul(graph, matmul, self._dequantized(graph, matmul, stored.block, 1))
        if matmul.outputs % 2:
            _remove_padding(graph, matmul, last)

    def _dequantized(self, graph: ir.Graph, matmul: ConstantMatMul, block: int, digit: int) -> ir.Value:
        """Return a weight in 4 bits as its matmul reads it, in fp32."""
        rows, columns = matmul.inputs, matmul.outputs
        name = f"{matmul.name}.low" if digit else matmul.name
        node_name = name if _is_first_use(graph, name) else f"{name}/{matmul.node.name}"
        blocks = partial(self.digit, matmul.name, matmul.weight, block, digit)
        filled = columns + columns % 2
        shape = ir.Shape((rows, filled))
        integers, scales = partial(_integers, blocks, rows), partial(_scales, blocks)
        inputs = [
            initializer_once(graph, f"{name}.int4", ir.DataType.INT4, (rows, filled), integers),
            initializer_once(graph, f"{name}.scales", ir.DataType.FLOAT16, (rows // block, filled), scales),
        ]
        dequantize = ir.node(
            "DequantizeLinear", inputs, {"axis": 0, "block_size": block}, name=f"{node_name}/DequantizeLinear"
        )
        rounded = dequantize.outputs[0]
        rounded.name, rounded.dtype, rounded.shape = f"{node_name}.rounded", ir.DataType.FLOAT16, shape
        cast = ir.node("Cast", [rounded], {"to": ir.DataType.FLOAT}, name=f"{node_name}.rounded/Cast")
        wide = cast.outputs[0]
        wide.name, wide.dtype, wide.shape = f"{node_name}.dequantized", ir.DataType.FLOAT, shape
        graph.insert_before(matmul.node, [dequantize, cast])
        return wide


def _is_first_use(graph: ir.Graph, name: str) -> bool:
    return f"{name}.int4" not in graph.initializers


def _add_matmul(graph: ir.Graph, matmul: ConstantMatMul, weight: ir.Value) -> ir.Node:
    """Add the product with another weight to a matmul's output; the sum takes name, type and uses of it."""
    out, name = matmul.node.outputs[0], matmul.node.name
    low = ir.node("MatMul", [matmul.node.inputs[0], weight], num_outputs=1, name=f"{name}.low")
    total = ir.node("Add", [], num_outputs=1, name=f"{name}.sum")
    kept = total.outputs[0]
    kept.type, kept.shape = _copied(out.type), out.shape
    ir.convenience.replace_all_uses_with(out, kept, replace_graph_outputs=True)
    kept.name, out.name = out.name, f"{name}.high.value"
    out.shape = out.shape if matmul.outputs % 2 == 0 else None
    value = low.outputs[0]
    value.name, value.type, value.shape = f"{name}.low.value", _copied(out.type), out.shape
    total.resize_inputs(2)
    for i, term in enumerate((out, value)):
        total.replace_input_with(i, term)
    graph.insert_after(matmul.node, [low, total])
    return total


def _copied(kind: ir.TypeProtocol | None) -> ir.TypeProtocol | None:
    """Return a type that a later pass may change for one value alone."""
    return ir.TensorType(kind.dtype) if kind is not None else None


def _remove_padding(graph: ir.Graph, matmul: ConstantMatMul, last: ir.Node) -> None:
    """Slice off the last column of the output of `last`; the slice takes its name, type and uses."""
    out = last.outputs[0]
    name = matmul.name if f"{matmul.name}/Slice" not in {node.name for node in graph} else matmul.node.name
    edges = [ir.node("Constant", [], {"value_ints": [value]}) for value in (0, matmul.outputs, -1)]
    slice_ = ir.node("Slice", [], name=f"{name}/Slice", num_outputs=1)
    kept = slice_.outputs[0]
    kept.type, kept.shape = _copied(out.type), out.shape
    ir.convenience.replace_all_uses_with(out, kept, replace_graph_outputs=True)
    kept.name, out.name, out.shape = out.name, f"{name}.padded", None
    for i, edge in enumerate(edges):
        edge.name, edge.outputs[0].name = f"{name}/Slice.{i}", f"{name}/Slice.{i}.value"
    slice_.resize_inputs(4)
    for i, value in enumerate([out, *(edge.outputs[0] for edge in edges)]):
        slice_.replace_input_with(i, value)
    graph.insert_after(last, [*edges, slice_])


def _scales(blocks: Callable[[], Blocks]) -> np.ndarray:
    """Return the scales [K / block, N] fp16 of a weight, of an even N."""
    found = blocks().scales.T.astype(np.float16)
    return np.pad(found, ((0, 0), (0, found.shape[1] % 2)), constant_values=1)


def _integers(blocks: Callable[[], Blocks], inputs: int) -> np.ndarray:
    """Return a weight in integers [K, N] INT4, of an even N."""
    found = blocks()
    columns = len(found.packed)
    out = np.zeros((inputs, columns + columns % 2), ir.DataType.INT4.numpy())
    for some in few_columns(columns):
        out[:, some] = integers_of(Blocks(found.packed[some], found.scales[some]), inputs)
    return out
