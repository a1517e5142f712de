"""The pipeline for ONNX Runtime on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_ir.passes import common

from lira_engine.bundle.manifest import STAGES
from lira_engine.errors import LiraError
from lira_engine.lowering.passes.decompose_cached_attention import DecomposeCachedAttention
from lira_engine.lowering.passes.fuse_residual_norm import FuseResidualNorm
from lira_engine.lowering.passes.pack_qkv import PackQkv
from lira_engine.lowering.passes.quantize_matmul import QuantizeMatMul
from lira_engine.lowering.passes.use_dynamic_quantize_matmul import UseDynamicQuantizeMatMul
from lira_engine.lowering.passes.use_group_query_attention import UseGroupQueryAttention
from lira_engine.lowering.passes.use_multi_head_attention import UseMultiHeadAttention
from lira_engine.lowering.passes.use_simplified_layer_normalization import UseSimplifiedLayerNormalization
from lira_engine.lowering.passes.widen_weights import WidenWeights
from lira_engine.lowering.pipeline import CLEAN_UP_FOR_ORT, Pass
from lira_engine.lowering.quantization import Quantization

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
_ENCODER: tuple[Pass, ...] = (
    WidenWeights(),
    UseMultiHeadAttention(),
    common.InlinePass(),
    *CLEAN_UP_FOR_ORT,
)


def cpu_pipeline(
    stage: str, precision: str = "fp32", quantization: Quantization | None = None
) -> Sequence[Pass]:
    """Return the passes that lower a portable graph of `stage`.

    Args:
        precision: of the language model fp32, or int8 or int4 weights; of the other stages fp32, or int8
            (weights and activations of large matmuls).
        quantization: of the language model's int8 and int4 weights.

    Raises LiraError for a stage or precision that does not exist.
    """
    if stage == "llm" and precision in ("int8", "int4"):
        bits = int(precision.removeprefix("int"))
        return (QuantizeMatMul((quantization or Quantization()).choice(bits)), *_LLM)
    if stage in STAGES and precision == "fp32":
        return _LLM if stage == "llm" else _ENCODER
    if stage in STAGES and precision == "int8":
        return (UseDynamicQuantizeMatMul(), *_ENCODER)
    raise LiraError(
        f"nothing lowers {stage} {precision} for the CPU: expected one of {', '.join(STAGES)}, and fp32, "
        "int8 or, for llm, int4"
    )
