"""The weights that a recipe names are those of matmuls."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from lira_engine.engines.recipe import MEND
from lira_engine.lowering.weights import constant_matmuls


class RequireMatMuls(ir.passes.InPlacePass):
    """A form for a weight that no matmul reads would be left out in silence.

    Requires: each of `names` is an initializer [K, N] that a `MatMul` has on the right, or a Cast of it.
    Does: nothing.
    Ensures: the same.
    """

    mend = MEND

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names

    def requires(self, model: ir.Model) -> None:
        found = {matmul.name for matmul in constant_matmuls(model.graph)}
        for name in self.names:
            if name not in found:
                raise ir.passes.PreconditionError(f"no matmul reads {name}, which the recipe gives a form")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        return ir.passes.PassResult(model, False)

    def ensures(self, model: ir.Model) -> None:
        self.requires(model)
