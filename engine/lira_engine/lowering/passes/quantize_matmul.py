"""Products with constant weights become ONNX Runtime's `MatMulNBits`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.int4_blocks import Blocks, quantize, residual
from lira_engine.lowering.nodes import replace_node
from lira_engine.lowering.weights import ConstantMatMul, constant_matmuls, lazy_initializer

ACCURACY_LEVEL = 4
"""Activations are rounded to 8 bits, per row and block, and products summed as integers."""


@dataclass(frozen=True)
class WeightBits:
    """How one weight is kept: 4 bits, or 8 as twice 4; a scale for every `block` inputs."""

    bits: int
    block: int = 32

    def __post_init__(self) -> None:
        if self.bits not in (4, 8) or self.block not in (16, 32, 64, 128, 256):
            raise ValueError(f"{self}: expected 4 or 8 bits and a block of 16, 32, 64, 128 or 256")


Choice = Callable[[str], WeightBits | None]
"""How to keep the weight of this name; None leaves it as it is."""


class QuantizeMatMul(ir.passes.InPlacePass):
    """Weight-only quantization, round to nearest.

    Requires: `MatMul` with an initializer [K, N], or a Cast of one, on the right.
    Does: replaces those that `choose` wants by `com.microsoft.MatMulNBits`. Eight bits are two of them, the
        second of what the first one misses: ONNX Runtime 1.20 has four bits only. Weights are rounded when
        the file is written, one at a time.
    Ensures: no chosen weight is left in floating point.
    """

    def __init__(self, choose: Choice) -> None:
        super().__init__()
        self.choose = choose

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for product in constant_matmuls(model.graph):
            kept = self.choose(product.name)
            if kept is not None:
                self._replace(model.graph, product, kept)
                modified = True
        if modified:
            model.graph.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified)

    def _replace(self, graph: ir.Graph, product: ConstantMatMul, kept: WeightBits) -> None:
        digits = ("q4",) if kept.bits == 4 else ("high", "low")
        nodes = [_matmul_nbits(graph, product, kept, i, name) for i, name in enumerate(digits)]
        if len(nodes) == 2:
            parts = [node.outputs[0] for node in nodes]
            nodes.append(ir.node("Add", parts, num_outputs=1, name=f"{product.node.name}.sum"))
        replace_node(graph, product.node, nodes, nodes[-1].outputs)


def _matmul_nbits(
    graph: ir.Graph, product: ConstantMatMul, kept: WeightBits, digit: int, digit_name: str
) -> ir.Node:
    stored, outputs = product.weight, product.outputs
    count = -(-product.inputs // kept.block)
    name = f"{product.name}.{digit_name}"

    def packed() -> np.ndarray:
        return _digit(stored, kept.block, digit).packed

    def scales() -> np.ndarray:
        return _digit(stored, kept.block, digit).scales.reshape(-1)

    shape = (outputs, count, kept.block // 2)
    return ir.node(
        "MatMulNBits",
        [
            product.node.inputs[0],
            lazy_initializer(graph, f"{name}.packed", ir.DataType.UINT8, shape, packed),
            lazy_initializer(graph, f"{name}.scales", ir.DataType.FLOAT, (outputs * count,), scales),
        ],
        {
            "K": product.inputs,
            "N": outputs,
            "bits": 4,
            "block_size": kept.block,
            "accuracy_level": ACCURACY_LEVEL,
        },
        domain="com.microsoft",
        num_outputs=1,
        name=f"{product.node.name}.{digit_name}",
    )


def _digit(stored: ir.TensorProtocol, block: int, digit: int) -> Blocks:
    """The first or second four bits."""
    weight = np.asarray(stored.numpy())
    blocks = quantize(weight, block)
    return quantize(residual(weight, blocks), block) if digit else blocks
