"""The pipeline for ONNX Runtime on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.precision import MIXED
from lira_engine.engines.recipe import NO_RECIPE, StageRecipe
from lira_engine.errors import LiraError
from lira_engine.lowering.passes.decompose_cached_attention import DecomposeCachedAttention
from lira_engine.lowering.passes.expand_constants import ExpandConstants
from lira_engine.lowering.passes.fold_bias import FoldBias
from lira_engine.lowering.passes.fuse_residual_norm import FuseResidualNorm
from lira_engine.lowering.passes.keep_channels_last import KeepChannelsLast
from lira_engine.lowering.passes.keep_norms_apart import KeepNormsApart
from lira_engine.lowering.passes.multiply_in_chunks import MultiplyInChunks
from lira_engine.lowering.passes.pack_qkv import PackQkv
from lira_engine.lowering.passes.quantize_matmul import QuantizeMatMul
from lira_engine.lowering.passes.use_dynamic_quantize_matmul import UseDynamicQuantizeMatMul
from lira_engine.lowering.passes.use_group_query_attention import UseGroupQueryAttention
from lira_engine.lowering.passes.use_matmul_integer_to_float import UseMatMulIntegerToFloat
from lira_engine.lowering.passes.use_multi_head_attention import UseMultiHeadAttention
from lira_engine.lowering.passes.use_simplified_layer_normalization import UseSimplifiedLayerNormalization
from lira_engine.lowering.passes.widen_weights import WidenWeights
from lira_engine.lowering.pipeline import CLEAN_UP_FOR_ORT, Pass
from lira_engine.lowering.prefill import LayerGroup, prefill_groups
from lira_engine.lowering.quantization import Quantization
from lira_engine.lowering.recipes import Forms

_LLM: tuple[Pass, ...] = (
    WidenWeights(),
    UseGroupQueryAttention(),
    PackQkv(),
    DecomposeCachedAttention(),
    UseSimplifiedLayerNormalization(),
    FuseResidualNorm(),
    common.InlinePass(),
    *CLEAN_UP_FOR_ORT,
)
_FASTER_IN_FP32: tuple[Pass, ...] = (ExpandConstants(), KeepChannelsLast())
"""Leave every result as it is, bit for bit."""
_ENCODER: tuple[Pass, ...] = (
    WidenWeights(),
    UseMultiHeadAttention(),
    *_FASTER_IN_FP32,
    common.InlinePass(),
    *CLEAN_UP_FOR_ORT,
)
_ENCODER_IN_8_BITS: tuple[Pass, ...] = (
    WidenWeights(),
    FoldBias(),
    UseMultiHeadAttention(),
    *_FASTER_IN_FP32,
    KeepNormsApart(),
    MultiplyInChunks(),
    common.InlinePass(),
    *CLEAN_UP_FOR_ORT,
)


KINDS = ("int4", "int8", "w8a8")
"""Forms of a recipe that ONNX Runtime has on CPUs."""


def cpu_pipeline(
    stage: str,
    precision: str = "fp32",
    quantization: Quantization | None = None,
    recipe: StageRecipe | None = None,
) -> Sequence[Pass]:
    """Return the passes that lower a portable graph of `stage`.

    Args:
        precision: of the language model fp32, or int8 or int4 weights; of the other stages fp32, or int8
            (weights and activations of large matmuls); of all mixed, which `recipe` decides.
        quantization: of the language model's int8 and int4 weights.
        recipe: of mixed. What it leaves alone is fp32.

    Raises LiraError for a stage or precision that does not exist, and a form that CPUs lack.
    """
    if stage == "llm" and precision in ("int8", "int4"):
        bits = int(precision.removeprefix("int"))
        return (QuantizeMatMul((quantization or Quantization()).choice(bits)), *_LLM)
    if stage in STAGES and precision == MIXED:
        return _mixed(stage, recipe or NO_RECIPE)
    if stage in STAGES and precision == "fp32":
        return _LLM if stage == "llm" else _ENCODER
    if stage in STAGES and precision == "int8":
        return (UseDynamicQuantizeMatMul(), *_ENCODER_IN_8_BITS)
    raise LiraError(
        f"nothing lowers {stage} {precision} for the CPU: expected one of {', '.join(STAGES)}, and fp32, "
        "int8, mixed or, for llm, int4"
    )


def cpu_prefill(model: ir.Model, precision: str, recipe: StageRecipe | None = None) -> list[LayerGroup]:
    """Return the language model's graphs for passes of many rows; none for fp32.

    Args:
        model: its portable graph. precision, recipe: as in `cpu_pipeline`. Weights that a recipe keeps as
            floats, or in 8-bit blocks because of rows with huge values, are fed in fp32.

    Raises LiraError if the graph is not one that `lira-edge export` wrote.
    """
    if precision in ("int8", "int4"):
        return prefill_groups(model, (), lambda name: True)
    if precision != MIXED or not recipe:
        return []
    kinds = {name: form.kind for name, form in recipe.forms.items()}
    return prefill_groups(
        model, Forms(recipe).first_passes(), lambda name: kinds.get(name) in ("int4", "w8a8")
    )


def _mixed(stage: str, recipe: StageRecipe) -> Sequence[Pass]:
    forms = Forms(recipe)
    forms.check(stage, "the CPU", KINDS)
    in_8_bits = any(form.kind == "w8a8" for form in recipe.forms.values())
    encoder = _ENCODER_IN_8_BITS if in_8_bits else _ENCODER
    return (
        *forms.first_passes(),
        QuantizeMatMul(forms.bits, forms.digit),
        UseDynamicQuantizeMatMul(forms.is_dynamic),
        UseMatMulIntegerToFloat(forms.range_of("w8a8", dynamic=False)),
        *(_LLM if stage == "llm" else encoder),
    )
