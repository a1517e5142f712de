"""Graph passes: what a target cannot run, or runs slowly, in operators that it has.

A portable graph (opset 24, standard operators, `lira.*` functions) goes through its target's pipeline, one
pass after the other. Each pass says what it requires, does and ensures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from lira_engine.errors import LiraError
from lira_engine.passes.decomposed_attention import DecomposeCachedAttention
from lira_engine.passes.group_query_attention import UseGroupQueryAttention
from lira_engine.passes.multi_head_attention import UseMultiHeadAttention
from lira_engine.passes.opset import StateInOpset
from lira_engine.passes.rms_norm import FuseResidualNorm, UseSimplifiedLayerNormalization

Pass = ir.passes.PassBase

# What ONNX Runtime 1.20 reads, the oldest one that engines are built for.
_ORT_120: tuple[Pass, ...] = (
    common.InlinePass(),
    common.CommonSubexpressionEliminationPass(),
    common.RemoveUnusedNodesPass(),
    common.RemoveUnusedFunctionsPass(),
    common.RemoveUnusedOpsetsPass(),
    StateInOpset(21, ir_version=10),
)
_ORT_LLM: tuple[Pass, ...] = (
    UseGroupQueryAttention(),
    DecomposeCachedAttention(),
    UseSimplifiedLayerNormalization(),
    FuseResidualNorm(),
    *_ORT_120,
)
_ORT_ENCODER: tuple[Pass, ...] = (UseMultiHeadAttention(), *_ORT_120)

PIPELINES: Mapping[tuple[str, str], Sequence[Pass]] = {
    ("cpu", "llm"): _ORT_LLM,
    **{
        ("cpu", stage): _ORT_ENCODER
        for stage in ("semantic_encoder", "pixel_encoder", "sefe", "pixel_decoder")
    },
}
"""(target, stage) -> passes in order."""


def pipeline(target: str, stage: str, precision: str = "fp32") -> Sequence[Pass]:
    """The passes that make a portable graph of `stage` one for `target`. LiraError where there are none."""
    if precision != "fp32" or (target, stage) not in PIPELINES:
        known = ", ".join(sorted(f"{t} {s} fp32" for t, s in PIPELINES))
        raise LiraError(f"nothing lowers {target} {stage} {precision}: expected one of {known}")
    return PIPELINES[target, stage]


def apply(model: ir.Model, passes: Iterable[Pass]) -> ir.Model:
    """Run passes in order, in place where they work so. Raises what a pass raises."""
    for one in passes:
        model = one(model).model
    return model


def lower(model: ir.Model, target: str, stage: str, precision: str = "fp32") -> ir.Model:
    """A portable graph in operators of `target`. The model that is given is not usable afterwards."""
    return apply(model, pipeline(target, stage, precision))
