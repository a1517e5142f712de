"""The LM head in several products."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from lira_engine.engines.llm_tensors import LM_HEAD
from lira_engine.lowering.nodes import replace_node
from lira_engine.lowering.weights import ConstantMatMul, constant_matmuls, lazy_initializer


class SplitLmHead(ir.passes.InPlacePass):
    """Columns of the largest weight, some at a time: building it as a whole is what fails on 8 GB boards.

    Requires: at most one `MatMul` with the initializer `name` [K, N], or a Cast of it, on the right.
    Does: replaces it by `parts` products of about N / parts columns each and a Concat.
    Ensures: the same sums; no weight has more than ceil(N / parts) columns of it.
    """

    def __init__(self, parts: int, name: str = LM_HEAD) -> None:
        super().__init__()
        self.parts = parts
        self.name = name

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for product in constant_matmuls(model.graph) if self.parts > 1 else []:
            if product.name == self.name:
                self._replace(model.graph, product)
                return ir.passes.PassResult(model, True)
        return ir.passes.PassResult(model, False)

    def _replace(self, graph: ir.Graph, product: ConstantMatMul) -> None:
        matmul, stored, dtype = product.node, product.weight, product.weight.dtype
        edges = [product.outputs * part // self.parts for part in range(self.parts + 1)]
        nodes: list[ir.Node] = []
        pieces = []
        for i, (start, stop) in enumerate(pairwise(edges)):
            name = f"{self.name}.{i}"
            read: Callable[[], np.ndarray] = partial(_columns, stored, start, stop)
            piece = lazy_initializer(graph, name, dtype, (product.inputs, stop - start), read)
            if dtype != ir.DataType.FLOAT:
                nodes.append(ir.node("Cast", [piece], {"to": ir.DataType.FLOAT}, name=f"{name}/Cast"))
                piece = nodes[-1].outputs[0]
                piece.name, piece.dtype = f"{name}.fp32", ir.DataType.FLOAT
            nodes.append(ir.node("MatMul", [matmul.inputs[0], piece], name=f"{name}/MatMul"))
            nodes[-1].outputs[0].name = f"{name}.out"
            pieces.append(nodes[-1].outputs[0])
        nodes.append(ir.node("Concat", pieces, {"axis": -1}, name=f"{matmul.name}.joined"))
        replace_node(graph, matmul, nodes, nodes[-1].outputs)


def _columns(stored: ir.TensorProtocol, start: int, stop: int) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(stored.numpy())[:, start:stop])
