"""Matmuls with constant weights become ONNX Runtime's `MatMulNBits`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from lira_engine.lowering.int4_blocks import Digit, WeightBits, quantize, rounded_by
from lira_engine.lowering.nodes import CONTRIB, replace_node
from lira_engine.lowering.weights import (
    ConstantMatMul,
    constant_matmuls,
    ensure_replaced,
    initializer_once,
)

ACCURACY_LEVEL = 4
"""Activations are rounded to 8 bits, per row and block, and multiplied as integers."""


Choice = Callable[[str], WeightBits | None]
"""Name of a weight -> how to store it; None leaves it as it is."""
NEAREST = rounded_by(quantize)


class QuantizeMatMul(ir.passes.InPlacePass):
    """Weight-only quantization.

    Requires: nothing.
    Does: replaces each `MatMul` with an initializer [K, N] that `choose` wants, or a Cast of it, on the right
        by `com.microsoft.MatMulNBits`. Eight bits are two of them, the second with the rounding error of the
        first: ONNX Runtime 1.20 has four bits only. `digit` rounds weights, when the file is written, one at
        a time; a weight of several matmuls once.
    Ensures: no matmul with a chosen weight is left.
    """

    def __init__(self, choose: Choice, digit: Digit = NEAREST) -> None:
        super().__init__()
        self.choose = choose
        self.digit = digit

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        chosen = self._chosen(model)
        for matmul, stored in chosen:
            self._replace(model.graph, matmul, stored)
        if chosen:
            model.graph.opset_imports[CONTRIB] = 1
        return ir.passes.PassResult(model, bool(chosen))

    def ensures(self, model: ir.Model) -> None:
        ensure_replaced([matmul for matmul, _ in self._chosen(model)])

    def _chosen(self, model: ir.Model) -> list[tuple[ConstantMatMul, WeightBits]]:
        choices = [(matmul, self.choose(matmul.name)) for matmul in constant_matmuls(model.graph)]
        return [(matmul, stored) for matmul, stored in choices if stored is not None]

    def _replace(self, graph: ir.Graph, matmul: ConstantMatMul, stored: WeightBits) -> None:
        digits = ("q4",) if stored.bits == 4 else ("high", "low")
        nodes = [self._matmul_nbits(graph, matmul, stored.block, i, name) for i, name in enumerate(digits)]
        if len(nodes) == 2:
            parts = [node.outputs[0] for node in nodes]
            nodes.append(ir.node("Add", parts, num_outputs=1, name=f"{matmul.node.name}.sum"))
        replace_node(graph, matmul.node, nodes, nodes[-1].outputs)

    def _matmul_nbits(
        self, graph: ir.Graph, matmul: ConstantMatMul, block: int, digit: int, digit_name: str
    ) -> ir.Node:
        weight, outputs = matmul.weight, matmul.outputs
        count = -(-matmul.inputs // block)
        name = f"{matmul.name}.{digit_name}"

        def packed() -> np.ndarray:
            return self.digit(matmul.name, weight, block, digit).packed

        def scales() -> np.ndarray:
            return self.digit(matmul.name, weight, block, digit).scales.reshape(-1)

        shape = (outputs, count, block // 2)
        return ir.node(
            "MatMulNBits",
            [
                matmul.node.inputs[0],
                initializer_once(graph, f"{name}.packed", ir.DataType.UINT8, shape, packed),
                initializer_once(graph, f"{name}.scales", ir.DataType.FLOAT, (outputs * count,), scales),
            ],
            {
                "K": matmul.inputs,
                "N": outputs,
                "bits": 4,
                "block_size": block,
                "accuracy_level": ACCURACY_LEVEL,
            },
            domain=CONTRIB,
            num_outputs=1,
            name=f"{matmul.node.name}.{digit_name}",
        )
