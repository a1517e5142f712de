"""What the pipelines of all targets share.

A portable graph (opset 24, standard operators, `lira.*` functions) goes through its target's pipeline, one
pass after the other: see `cpu`, `cuda` and `tensorrt` beside this module.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir
from onnx_ir.passes import common

from lira_engine.errors import LiraError
from lira_engine.lowering.passes.downgrade_opset import DowngradeOpset

Pass = ir.passes.PassBase
MEND = "export the bundle again; if it stays, report this with the output of `lira-edge doctor`"

CLEAN_UP: tuple[Pass, ...] = (
    common.CommonSubexpressionEliminationPass(),
    common.RemoveUnusedNodesPass(),
    common.RemoveUnusedFunctionsPass(),
    common.RemoveUnusedOpsetsPass(),
)
"""Remove what the passes before it made redundant."""

CLEAN_UP_FOR_ORT: tuple[Pass, ...] = (*CLEAN_UP, DowngradeOpset(21, ir_version=10))
"""Also declare what ONNX Runtime 1.20 reads, the oldest version that engines are built for."""


def apply(model: ir.Model, passes: Iterable[Pass]) -> ir.Model:
    """Run `passes` in order and return the result; `model` may be changed.

    Raises LiraError if a graph is not what a pass requires, or its result not what the pass ensures. It says
    what mends that: the pass's `mend`, if it has one.
    """
    for one in passes:
        try:
            model = one(model).model
        except ir.passes.InvariantError as error:
            why = f"{type(one).__name__} cannot lower {model.graph.name}: {error.__cause__ or error}"
            raise LiraError(f"{why}; {getattr(one, 'mend', MEND)}") from error
    return model
