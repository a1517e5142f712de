"""Weights become INT4 behind the standard's `DequantizeLinear`, as TensorRT reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.int4_blocks import COLUMNS_AT_ONCE
from lira_engine.lowering.weights import (
    ConstantMatMul,
    constant_matmuls,
    ensure_replaced,
    lazy_initializer,
    require_unshared,
)

Scales = Callable[[str, np.ndarray, int], np.ndarray]
"""(name, weight [K, N] of any float dtype, block) -> scales [K / block, N] float32, positive. A recipe brings
them."""
Block = Callable[[str, int], int | None]
"""(name, K) -> inputs that share a scale, a divisor of K; None leaves the weight as it is."""
LARGEST = 7
"""Largest integer of the symmetric range; TensorRT wants positive scales, which leave no use for -8."""


def nearest_scales(name: str, weight: np.ndarray, block: int) -> np.ndarray:
    """Return the scales that make the largest magnitude of each block 7."""
    scales = np.empty((len(weight) // block, weight.shape[1]), np.float32)
    for some in _columns(weight):
        blocks = weight[:, some].astype(np.float32).reshape(-1, block, some.stop - some.start)
        scales[:, some] = np.maximum(blocks.max(axis=1), -blocks.min(axis=1)) / np.float32(LARGEST)
    return np.maximum(scales, np.float32(np.finfo(np.float16).tiny))


class QuantizeWeights(ir.passes.InPlacePass):
    """4-bit weight-only quantization in standard operators.

    Requires: `block` is a divisor of the weight's inputs; a chosen weight belongs to one matmul.
    Does: takes each `MatMul` with an initializer [K, N], or a Cast of one, on the right for which `block` is
        not None, and puts `DequantizeLinear` of an INT4 initializer (blocks along K, fp16 scales) and a Cast
        to fp32 in the weight's place. Weights are rounded to the nearest multiple of `scales` when the file
        is written, one at a time. An odd N gets a column of zeros, which a `Slice` after the matmul removes.
    Ensures: no chosen matmul is left. INT4 weights have an even number of columns, so that the two integers
        of a byte are of one row, as parsers before TensorRT 10.15 want. Opset 21, the first with block_size,
        suffices (not checked).
    """

    def __init__(self, block: Block, scales: Scales = nearest_scales) -> None:
        super().__init__()
        self.block = block
        self.scales = scales

    def requires(self, model: ir.Model) -> None:
        chosen = self._chosen(model)
        require_unshared([matmul for matmul, _ in chosen])
        for matmul, block in chosen:
            if matmul.inputs % block:
                raise ir.passes.PreconditionError(
                    f"{matmul.name}: {matmul.inputs} inputs are no multiple of the block {block}"
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        chosen = self._chosen(model)
        for matmul, block in chosen:
            self._replace(model.graph, matmul, block)
        return ir.passes.PassResult(model, bool(chosen))

    def ensures(self, model: ir.Model) -> None:
        ensure_replaced([matmul for matmul, _ in self._chosen(model)])
        for name, weight in model.graph.initializers.items():
            if weight.dtype == ir.DataType.INT4 and weight.shape is not None and int(weight.shape[-1]) % 2:  # type: ignore[arg-type]
                raise ir.passes.PostconditionError(
                    f"{name} has {weight.shape[-1]} columns, expected an even number"
                )

    def _chosen(self, model: ir.Model) -> list[tuple[ConstantMatMul, int]]:
        found = constant_matmuls(model.graph)
        choices = [(matmul, self.block(matmul.name, matmul.inputs)) for matmul in found]
        return [(matmul, block) for matmul, block in choices if block is not None]

    def _replace(self, graph: ir.Graph, matmul: ConstantMatMul, block: int) -> None:
        stored, name, rows, columns = matmul.weight, matmul.name, matmul.inputs, matmul.outputs
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
        graph.insert_before(matmul.node, [dequantize, cast])
        matmul.node.replace_input_with(1, wide)
        if columns % 2:
            _remove_padding(graph, matmul)


def _remove_padding(graph: ir.Graph, matmul: ConstantMatMul) -> None:
    """Slice off the last column of a matmul's output; the slice takes name, type and uses of the output."""
    out = matmul.node.outputs[0]
    edges = [ir.node("Constant", [], {"value_ints": [value]}) for value in (0, matmul.outputs, -1)]
    slice_ = ir.node("Slice", [], name=f"{matmul.name}/Slice", num_outputs=1)
    kept = slice_.outputs[0]
    kept.type, kept.shape = out.type, out.shape
    ir.convenience.replace_all_uses_with(out, kept, replace_graph_outputs=True)
    kept.name, out.name, out.shape = out.name, f"{matmul.name}.padded", None
    for i, edge in enumerate(edges):
        edge.name, edge.outputs[0].name = f"{matmul.name}/Slice.{i}", f"{matmul.name}/Slice.{i}.value"
    slice_.resize_inputs(4)
    for i, value in enumerate([out, *(edge.outputs[0] for edge in edges)]):
        slice_.replace_input_with(i, value)
    graph.insert_after(matmul.node, [*edges, slice_])


def _scales(stored: ir.TensorProtocol, name: str, block: int, scales: Scales) -> np.ndarray:
    found = scales(name, np.asarray(stored.numpy()), block).astype(np.float16)
    return np.pad(found, ((0, 0), (0, found.shape[1] % 2)), constant_values=1)


def _integers(stored: ir.TensorProtocol, scales: Callable[[], np.ndarray], block: int) -> np.ndarray:
    """Return a weight in integers, rounded to the scales as they are stored, in fp16."""
    weight, kept = np.asarray(stored.numpy()), scales()
    out = np.zeros((len(weight), kept.shape[1]), ir.DataType.INT4.numpy())
    for some in _columns(weight):
        blocks = weight[:, some].astype(np.float32).reshape(-1, block, some.stop - some.start)
        blocks /= kept[:, None, some].astype(np.float32)
        np.rint(blocks, out=blocks).clip(-LARGEST, LARGEST, out=blocks)
        out[:, some] = blocks.reshape(-1, some.stop - some.start).astype(np.int8)
    return out


def _columns(weight: np.ndarray) -> Iterator[slice]:
    """Yield a few columns at a time: several copies of the largest weight in fp32 exceed a board's memory."""
    for start in range(0, weight.shape[1], COLUMNS_AT_ONCE):
        yield slice(start, min(start + COLUMNS_AT_ONCE, weight.shape[1]))
