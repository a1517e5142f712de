"""Graph passes: what a target cannot run, or runs slowly, in operators that it has.

A portable graph (opset 24, standard operators, `lira.*` functions) goes through its target's pipeline, one
pass after the other. Each pass says what it requires, does and ensures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes import common

from lira_engine.bundle.manifest import STAGES
from lira_engine.errors import LiraError
from lira_engine.lowering.passes.decomposed_attention import DecomposeCachedAttention
from lira_engine.lowering.passes.dynamic_matmul import UseDynamicQuantizeMatMul
from lira_engine.lowering.passes.group_query_attention import UseGroupQueryAttention
from lira_engine.lowering.passes.initializers import WidenWeights
from lira_engine.lowering.passes.multi_head_attention import UseMultiHeadAttention
from lira_engine.lowering.passes.opset import StateInOpset
from lira_engine.lowering.passes.packed_qkv import PackQkv
from lira_engine.lowering.passes.quantized_matmul import Choice, QuantizeMatMul, WeightBits
from lira_engine.lowering.passes.rms_norm import FuseResidualNorm, UseSimplifiedLayerNormalization

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
    WidenWeights(),
    UseGroupQueryAttention(),
    PackQkv(),
    DecomposeCachedAttention(),
    UseSimplifiedLayerNormalization(),
    FuseResidualNorm(),
    *_ORT_120,
)
_ORT_ENCODER: tuple[Pass, ...] = (WidenWeights(), UseMultiHeadAttention(), *_ORT_120)

LM_HEAD = "lm_head"


@dataclass(frozen=True)
class Quantization:
    """How a language model's weights are kept where they are quantized.

    Attributes:
        block: inputs that share a scale. lm_head_bits: 4, or 8 as twice 4.
    """

    block: int = 32
    lm_head_bits: int = 4

    def __post_init__(self) -> None:
        WeightBits(self.lm_head_bits, self.block)

    def choice(self, bits: int) -> Choice:
        """`bits` for every weight but the LM head, which has no fewer."""
        return lambda name: WeightBits(max(bits, self.lm_head_bits) if name == LM_HEAD else bits, self.block)


def pipeline(
    target: str, stage: str, precision: str = "fp32", quantization: Quantization | None = None
) -> Sequence[Pass]:
    """The passes that make a portable graph of `stage` one for `target`. LiraError where there are none.

    Precisions of the language model: fp32, int8, int4 (weights; `quantization` says more); of the other
    stages: fp32, int8 (weights and activations of large products).
    """
    first: Pass
    match target, stage, precision:
        case "cpu", "llm", "fp32":
            return _ORT_LLM
        case "cpu", "llm", "int8" | "int4":
            first = QuantizeMatMul((quantization or Quantization()).choice(int(precision[3:])))
            return (first, *_ORT_LLM)
        case "cpu", str(), "fp32" if stage in STAGES:
            return _ORT_ENCODER
        case "cpu", str(), "int8" if stage in STAGES:
            return (UseDynamicQuantizeMatMul(), *_ORT_ENCODER)
    raise LiraError(
        f"nothing lowers {target} {stage} {precision}: expected cpu, one of {', '.join(STAGES)}, and fp32, "
        "int8 or, for llm, int4"
    )


def apply(model: ir.Model, passes: Iterable[Pass]) -> ir.Model:
    """Run passes in order, in place where they work so. Raises what a pass raises."""
    for one in passes:
        model = one(model).model
    return model


def lower(
    model: ir.Model,
    target: str,
    stage: str,
    precision: str = "fp32",
    quantization: Quantization | None = None,
) -> ir.Model:
    """A portable graph in operators of `target`. The model that is given is not usable afterwards."""
    return apply(model, pipeline(target, stage, precision, quantization))
