"""The LM head's matmul becomes several."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from lira_engine.engines.llm_tensors import LM_HEAD
from lira_engine.lowering.nodes import replace_node
from lira_engine.lowering.weights import (
    ConstantMatMul,
    constant_matmuls,
    ensure_replaced,
    lazy_initializer,
    require_unshared,
)


class SplitLmHead(ir.passes.InPlacePass):
    """The largest weight in parts: compiling it as a whole fails on boards with 8 GB.

    Requires: at most one matmul with the initializer `name` [K, N], or a Cast of it, on the right; no more
        `parts` than N.
    Does: replaces it by `parts` matmuls of about N / parts columns each and a Concat.
    Ensures: no matmul reads the whole weight, unless there is one part.
    """

    def __init__(self, parts: int, name: str = LM_HEAD) -> None:
        super().__init__()
        self.parts = parts
        self.name = name

    def requires(self, model: ir.Model) -> None:
        heads = self._heads(model)
        require_unshared(heads)
        for head in heads:
            if self.parts > head.outputs:
                raise ir.passes.PreconditionError(
                    f"{self.name} has {head.outputs} columns, expected at least {self.parts}, one a part"
                )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        heads = self._heads(model)
        for head in heads:
            self._replace(model.graph, head)
        return ir.passes.PassResult(model, bool(heads))

    def ensures(self, model: ir.Model) -> None:
        ensure_replaced(self._heads(model))

    def _heads(self, model: ir.Model) -> list[ConstantMatMul]:
        """Return the matmul to split, if there is one."""
        found = constant_matmuls(model.graph) if self.parts > 1 else []
        return [matmul for matmul in found if matmul.name == self.name]

    def _replace(self, graph: ir.Graph, head: ConstantMatMul) -> None:
        matmul, stored, dtype = head.node, head.weight, head.weight.dtype
        edges = [head.outputs * part // self.parts for part in range(self.parts + 1)]
        nodes: list[ir.Node] = []
        pieces = []
        for i, (start, stop) in enumerate(pairwise(edges)):
            name = f"{self.name}.{i}"
            read: Callable[[], np.ndarray] = partial(_columns, stored, start, stop)
            piece = lazy_initializer(graph, name, dtype, (head.inputs, stop - start), read)
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
