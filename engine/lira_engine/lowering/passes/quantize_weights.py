"""Weights as blocks of signed 4-bit integers behind the standard's `DequantizeLinear`, as TensorRT reads
them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.int4_blocks import COLUMNS_AT_ONCE
from lira_engine.lowering.weights import ConstantMatMul, constant_matmuls, lazy_initializer

Scales = Callable[[str, np.ndarray, int], np.ndarray]
"""(name, weight [K, N] of any float dtype, block) -> scales [K / block, N] float32, positive. What a recipe
brings."""
Block = Callable[[str, int], int | None]
"""(name, K) -> inputs that share a scale, a divisor of K; None leaves the weight as it is."""
LARGEST = 7  # -8 is left out: TensorRT wants positive scales, so that the range is symmetric


def nearest_scales(name: str, weight: np.ndarray, block: int) -> np.ndarray:
    """The largest magnitude of each block becomes 7."""
    scales = np.empty((len(weight) // block, weight.shape[1]), np.float32)
    for some in _columns(weight):
        blocks = weight[:, some].astype(np.float32).reshape(-1, block, some.stop - some.start)
        scales[:, some] = np.maximum(blocks.max(axis=1), -blocks.min(axis=1)) / np.float32(LARGEST)
    return np.maximum(scales, np.float32(np.finfo(np.float16).tiny))


class QuantizeWeights(ir.passes.InPlacePass):
    """4-bit weight-only quantization in standard operators.

    Requires: `MatMul` with an initializer [K, N], or a Cast of one, on the right.
    Does: puts `DequantizeLinear` of an INT4 initializer, blocks along K, fp16 scales, and a Cast to fp32 in
        the weight's place, where `block` wants it. Weights are rounded to the nearest multiple of `scales`
        when the file is written, one at a time. An odd N gets a column of zeros, which a `Slice` cuts off
        behind the product.
    Ensures: opset 21 suffices (before it there is no block_size); two integers share a byte and a row, which
        parsers before TensorRT 10.15 want.
    """

    def __init__(self, block: Block, scales: Scales = nearest_scales) -> None:
        super().__init__()
        self.block = block
        self.scales = scales

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for product in constant_matmuls(model.graph):
            block = self.block(product.name, product.inputs)
            if block is not None:
                self._replace(model.graph, product, block)
                modified = True
        return ir.passes.PassResult(model, modified)

    def _replace(self, graph: ir.Graph, product: ConstantMatMul, block: int) -> None:
        stored, name, rows, columns = product.weight, product.name, product.inputs, product.outputs
        if rows % block:
            raise ir.passes.PreconditionError(f"{name}: {rows} inputs are no multiple of the block {block}")
        scales = partial(_scales, stored, name, block, self.scales)
        packed = partial(_integers, stored, scales, block)
        filled = columns + columns % 2
        shape = ir.Shape((rows, filled))
        inputs = [
            lazy_initializer(graph, f"{name}.int4", ir.DataType.INT4, (rows, filled), packed),
            lazy_initializer(graph, f"{name}.scales", ir.DataType.FLOAT16, (rows // block, filled), scales),
        ]
        dequantize = ir.node(
            "DequantizeLinear", inputs, {"axis": 0, "block_size": block}, name=f"{name}/DequantizeLinear"
        )
        rounded = dequantize.outputs[0]
        rounded.name, rounded.dtype, rounded.shape = f"{name}.rounded", ir.DataType.FLOAT16, shape
        cast = ir.node("Cast", [rounded], {"to": ir.DataType.FLOAT}, name=f"{name}.rounded/Cast")
        wide = cast.outputs[0]
        wide.name, wide.dtype, wide.shape = f"{name}.dequantized", ir.DataType.FLOAT, shape
        graph.insert_before(product.node, [dequantize, cast])
        product.node.replace_input_with(1, wide)
        if columns % 2:
            _cut_off_last(graph, product)


def _cut_off_last(graph: ir.Graph, product: ConstantMatMul) -> None:
    """Of a product's columns; what is left has its name, type and uses."""
    out = product.node.outputs[0]
    edges = [ir.node("Constant", [], {"value_ints": [value]}) for value in (0, product.outputs, -1)]
    cut = ir.node("Slice", [], name=f"{product.name}/Slice", num_outputs=1)
    kept = cut.outputs[0]
    kept.type, kept.shape = out.type, out.shape
    ir.convenience.replace_all_uses_with(out, kept, replace_graph_outputs=True)
    kept.name, out.name, out.shape = out.name, f"{product.name}.padded", None
    for i, edge in enumerate(edges):
        edge.name, edge.outputs[0].name = f"{product.name}/Slice.{i}", f"{product.name}/Slice.{i}.value"
    cut.resize_inputs(4)
    for i, value in enumerate([out, *(edge.outputs[0] for edge in edges)]):
        cut.replace_input_with(i, value)
    graph.insert_after(product.node, [*edges, cut])


def _scales(stored: ir.TensorProtocol, name: str, block: int, scales: Scales) -> np.ndarray:
    found = scales(name, np.asarray(stored.numpy()), block).astype(np.float16)
    return np.pad(found, ((0, 0), (0, found.shape[1] % 2)), constant_values=1)


def _integers(stored: ir.TensorProtocol, scales: Callable[[], np.ndarray], block: int) -> np.ndarray:
    """Rounded to the scales as they are kept, in fp16."""
    weight, kept = np.asarray(stored.numpy()), scales()
    out = np.zeros((len(weight), kept.shape[1]), ir.DataType.INT4.numpy())
    for some in _columns(weight):
        blocks = weight[:, some].astype(np.float32).reshape(-1, block, some.stop - some.start)
        blocks /= kept[:, None, some].astype(np.float32)
        np.rint(blocks, out=blocks).clip(-LARGEST, LARGEST, out=blocks)
        out[:, some] = blocks.reshape(-1, some.stop - some.start).astype(np.int8)
    return out


def _columns(weight: np.ndarray) -> Iterator[slice]:
    """A few at a time: the largest weight in fp32, several times over, is more than a board has."""
    for start in range(0, weight.shape[1], COLUMNS_AT_ONCE):
        yield slice(start, min(start + COLUMNS_AT_ONCE, weight.shape[1]))
