"""`Attention` without a fused kernel becomes matmuls and softmax."""

from __future__ import annotations

import onnx_ir as ir

from lira_engine.lowering.attention import Fused, sizes_of
from lira_engine.lowering.nodes import nodes_of
from lira_engine.lowering.passes.decompose_operators import decompose, require_decomposable


class DecomposeUnfusedAttention(ir.passes.InPlacePass):
    """`Attention` in basic operators where an engine has no fused kernel for it.

    Requires: each `Attention` of the main graph has static sizes, and is as `DecomposeOperators` requires
        where it is not `fused`. Bodies of functions are not looked at.
    Does: replaces it where its sizes are not `fused`.
    Ensures: each `Attention` that is left in the main graph is `fused`.
    """

    def __init__(self, fused: Fused) -> None:
        super().__init__()
        self.fused = fused

    def requires(self, model: ir.Model) -> None:
        for node in self._unfused(model):
            require_decomposable(model, node)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return decompose(model, self._unfused(model))

    def ensures(self, model: ir.Model) -> None:
        for node in self._unfused(model):
            raise ir.passes.PostconditionError(f"{node.name} has no fused kernel and is left")

    def _unfused(self, model: ir.Model) -> list[ir.Node]:
        found = []
        for node in nodes_of(model, "Attention"):
            sizes = sizes_of(node)
            if not self.fused(sizes.heads, sizes.head_size):
                found.append(node)
        return found
