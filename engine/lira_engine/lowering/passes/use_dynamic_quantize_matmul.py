"""Matmuls with constant weights become ONNX Runtime's `DynamicQuantizeMatMul`."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from lira_engine.lowering.nodes import CONTRIB, replace_node
from lira_engine.lowering.weights import (
    ConstantMatMul,
    constant_matmuls,
    eight_bits,
    ensure_replaced,
)

SMALLEST = 128
"""Inputs and outputs from which on 8-bit integers save more time than rounding the activations costs."""


class UseDynamicQuantizeMatMul(ir.passes.InPlacePass):
    """8-bit weights with a scale per output; 8-bit activations with one scale per matmul.

    Requires: nothing.
    Does: replaces each `MatMul` with an initializer [K, N], or a Cast of one, on the right that `choose`
        wants (if not given, those with K and N 128 or more) by `com.microsoft.DynamicQuantizeMatMul`.
        Weights are rounded when the file is written, one at a time.
    Ensures: no such matmul is left.
    """

    def __init__(self, choose: Callable[[ConstantMatMul], bool] | None = None) -> None:
        super().__init__()
        self.choose = choose or _is_large

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        chosen = self._chosen(model)
        for matmul in chosen:
            self._replace(model.graph, matmul)
        if chosen:
            model.graph.opset_imports[CONTRIB] = 1
        return ir.passes.PassResult(model, bool(chosen))

    def ensures(self, model: ir.Model) -> None:
        ensure_replaced(self._chosen(model))

    def _chosen(self, model: ir.Model) -> list[ConstantMatMul]:
        return [one for one in constant_matmuls(model.graph) if self.choose(one)]

    def _replace(self, graph: ir.Graph, matmul: ConstantMatMul) -> None:
        node = ir.node(
            "DynamicQuantizeMatMul",
            [matmul.node.inputs[0], *eight_bits(graph, matmul)],
            domain=CONTRIB,
            num_outputs=1,
            name=matmul.node.name,
        )
        replace_node(graph, matmul.node, [node], node.outputs)


def _is_large(matmul: ConstantMatMul) -> bool:
    return min(matmul.inputs, matmul.outputs) >= SMALLEST
