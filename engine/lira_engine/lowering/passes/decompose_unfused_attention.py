"""`Attention` that no fused kernel takes becomes matmuls and softmax."""

from __future__ import annotations

import onnx_ir as ir

from lira_engine.lowering.attention import Fused
from lira_engine.lowering.passes.decompose_operators import decompose, heads_of


class DecomposeUnfusedAttention(ir.passes.InPlacePass):
    """`Attention` with heads that no fused kernel takes, spelled out.

    Requires: `Attention` of the main graph as `DecomposeOperators` wants it; functions not inlined: what is
        in them is not looked at.
    Does: replaces it where its sizes are not `fused`.
    Ensures: what is left of it in the main graph has a fused kernel.
    """

    def __init__(self, fused: Fused) -> None:
        super().__init__()
        self.fused = fused

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [node for node in model.graph if (node.domain, node.op_type) == ("", "Attention")]
        return decompose(model, [node for node in found if not self.fused(*heads_of(node))])
