"""The pipeline for ONNX Runtime on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_ir.passes import common

from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.llm_tensors import is_cache
from lira_engine.engines.precision import MIXED
from lira_engine.engines.recipe import NO_RECIPE, StageRecipe
from lira_engine.errors import LiraError
from lira_engine.lowering.passes.decompose_cached_attention import DecomposeCachedAttention
from lira_engine.lowering.passes.decompose_operators import DecomposeOperators
from lira_engine.lowering.passes.fuse_residual_norm import FuseResidualNorm
from lira_engine.lowering.passes.pack_qkv import PackQkv
from lira_engine.lowering.passes.pad_outputs import PadOutputs
from lira_engine.lowering.passes.quantize_matmul import QuantizeMatMul
from lira_engine.lowering.passes.resolve_cast_like import ResolveCastLike
from lira_engine.lowering.passes.sample_by_gathers import SampleByGathers
from lira_engine.lowering.passes.use_group_query_attention import UseGroupQueryAttention
from lira_engine.lowering.passes.use_half_contrib_operators import UseHalfContribOperators
from lira_engine.lowering.passes.use_mixed_precision import UseMixedPrecision
from lira_engine.lowering.passes.use_multi_head_attention import UseMultiHeadAttention
from lira_engine.lowering.passes.use_simplified_layer_normalization import UseSimplifiedLayerNormalization
from lira_engine.lowering.passes.widen_weights import WidenWeights
from lira_engine.lowering.pipeline import CLEAN_UP_FOR_ORT, Pass
from lira_engine.lowering.quantization import Quantization
from lira_engine.lowering.recipes import Forms, operands, standard_weights

KINDS = ("int4", "int8", "w8a8", "fp8")
"""Forms of a recipe that ONNX Runtime has on GPUs."""
BLOCKS = {"cuda": (32, 64, 128), "tensorrt": (64, 128), "nv-tensorrt-rtx": (32, 64, 128)}
"""Inputs that can share a scale of an int4 weight, by provider."""


def cuda_pipeline(
    stage: str,
    precision: str,
    provider: str = "cuda",
    quantization: Quantization | None = None,
    recipe: StageRecipe | None = None,
) -> Sequence[Pass]:
    """Return the passes that lower a portable graph of `stage`.

    Args:
        precision: fp32, fp16, mixed (what `recipe` decides), or for the language model int4 (weights;
            arithmetic in fp16).
        provider: see `lira_engine.ort.device.PROVIDERS`. TensorRT's providers get standard operators, without
            those that TensorRT is known to compile wrongly. The language model stays with the CUDA provider,
            whose cached attention and 4-bit matmuls are in fp16.
        quantization: of the language model's int4 weights.
        recipe: of mixed. What it leaves alone is fp16, as in fp16. A range that it wants to have measured in
            each run is the calibrated one here.

    Raises LiraError for a stage or precision that does not exist, and a form that the provider lacks.
    """
    if (
        stage not in STAGES
        or precision not in ("fp32", "fp16", "int4", MIXED)
        or (precision == "int4" and stage != "llm")
    ):
        raise LiraError(
            f"nothing lowers {stage} {precision} for CUDA: expected one of {', '.join(STAGES)}, and fp32, "
            "fp16, mixed or, for llm, int4"
        )
    forms = Forms(recipe or NO_RECIPE)
    runs = "cuda" if stage == "llm" else provider
    forms.check(stage, f"provider {runs}", KINDS, BLOCKS[runs])
    if stage == "llm":
        return _llm(precision, quantization or Quantization(), forms)
    return _encoder(precision, forms) if provider == "cuda" else _standard_encoder(precision, forms)


def _llm(precision: str, quantization: Quantization, forms: Forms) -> Sequence[Pass]:
    passes: list[Pass] = []
    if precision == "int4":
        passes.append(QuantizeMatMul(quantization.choice(4)))
    if precision == MIXED:
        passes += [*forms.first_passes(), QuantizeMatMul(forms.bits, forms.digit)]
    if precision != "fp32":
        passes += [UseGroupQueryAttention(lengths_as_inputs=True), PackQkv()]
    passes += [DecomposeCachedAttention(), common.InlinePass(), ResolveCastLike()]
    if precision == MIXED:
        passes += operands(forms)
    if precision != "fp32":
        passes += [UseMixedPrecision(is_cache), UseHalfContribOperators(is_cache), PadOutputs()]
    return (*passes, WidenWeights(), UseSimplifiedLayerNormalization(), FuseResidualNorm(), *CLEAN_UP_FOR_ORT)


def _encoder(precision: str, forms: Forms) -> Sequence[Pass]:
    passes: list[Pass] = []
    if precision == MIXED:
        passes += [*forms.first_passes(), QuantizeMatMul(forms.bits, forms.digit)]
    passes += [common.InlinePass(), ResolveCastLike()]
    if precision == MIXED:
        passes += operands(forms)
    if precision != "fp32":
        passes.append(UseMixedPrecision())
    if precision == MIXED:
        passes.append(UseHalfContribOperators())
    return (*passes, WidenWeights(), UseMultiHeadAttention(), *CLEAN_UP_FOR_ORT)


def _standard_encoder(precision: str, forms: Forms) -> Sequence[Pass]:
    passes: list[Pass] = [*forms.first_passes()] if precision == MIXED else []
    passes += [SampleByGathers(), common.InlinePass(), ResolveCastLike(), DecomposeOperators()]
    if precision == MIXED:
        passes += [*standard_weights(forms), *operands(forms)]
    if precision != "fp32":
        passes.append(UseMixedPrecision())
    return (*passes, WidenWeights(), *CLEAN_UP_FOR_ORT)
