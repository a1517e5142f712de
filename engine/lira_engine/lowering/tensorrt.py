"""The pipeline for TensorRT's parser, strongly typed."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_ir.passes import common

from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.llm_tensors import LM_HEAD, is_cache
from lira_engine.engines.precision import MIXED
from lira_engine.engines.recipe import NO_RECIPE, StageRecipe
from lira_engine.errors import LiraError
from lira_engine.lowering.attention import none_fused
from lira_engine.lowering.int4_blocks import WeightBits
from lira_engine.lowering.passes.decompose_cached_attention import DecomposeCachedAttention
from lira_engine.lowering.passes.decompose_operators import DecomposeOperators
from lira_engine.lowering.passes.decompose_unfused_attention import DecomposeUnfusedAttention
from lira_engine.lowering.passes.downgrade_opset import DowngradeOpset
from lira_engine.lowering.passes.quantize_weights import QuantizeWeights
from lira_engine.lowering.passes.resolve_cast_like import ResolveCastLike
from lira_engine.lowering.passes.sample_by_gathers import SampleByGathers
from lira_engine.lowering.passes.sample_by_plugin import SampleByPlugin
from lira_engine.lowering.passes.split_lm_head import SplitLmHead
from lira_engine.lowering.passes.use_mixed_precision import UseMixedPrecision
from lira_engine.lowering.passes.widen_weights import WidenWeights
from lira_engine.lowering.pipeline import CLEAN_UP, Pass
from lira_engine.lowering.recipes import Forms, operands, standard_weights

PRECISIONS = ("fp32", "fp16", "int4", MIXED)
KINDS = ("int4", "int8", "w8a8", "fp8")
"""Forms of a recipe that TensorRT has; int8 are twice 4 bits."""
BLOCKS = (128, 64, 32)


def fused(heads: int, head_size: int) -> bool:
    """Return whether TensorRT has a fused kernel for `Attention` of these sizes in fp16.

    It builds no engine with another `Attention`, and none with one in fp32. Measured with TensorRT for RTX
    1.7: fewer than four heads are refused where the number of queries is dynamic.
    """
    return heads >= 4 and head_size in range(16, 257, 8)


def tensorrt_pipeline(
    stage: str,
    precision: str,
    dialect: str,
    *,
    block: int = 128,
    blocks: Sequence[int] = BLOCKS,
    lm_head_bits: int = 4,
    lm_head_parts: int = 1,
    plugin: str | None = None,
    recipe: StageRecipe | None = None,
) -> Sequence[Pass]:
    """Return the passes that lower a portable graph of `stage`.

    Args:
        precision: fp32; fp16 with fp32 islands; int4 (the language model's weights, all else as in fp16);
            mixed (what `recipe` decides, all else as in fp16).
        dialect: see `lira_engine.trt.flavour.Dialect`.
        block: inputs that share a scale. A weight whose inputs are no multiple of it takes the next
            smaller one of `blocks` that divides them, or stays fp16 if none does.
        lm_head_bits: 4, or 16 for an LM head in fp16.
        lm_head_parts: number of matmuls that the LM head is split into.
        plugin: version of NVIDIA's plugin for deformable sampling; None for gathers.
        recipe: of mixed; of the options above its blocks must be among `blocks`, and `lm_head_bits` is not
            asked. A range that it wants to have measured in each run is the calibrated one here.

    Raises LiraError for a stage or precision that does not exist, and a form that TensorRT lacks.
    """
    known = PRECISIONS if stage == "llm" else tuple(p for p in PRECISIONS if p != "int4")
    if stage not in STAGES or precision not in known:
        raise LiraError(
            f"nothing lowers {stage} {precision} for TensorRT: expected one of {', '.join(STAGES)}, "
            f"and {', '.join(known)}"
        )
    forms = Forms(recipe or NO_RECIPE, lm_head_parts)
    forms.check(stage, "TensorRT", KINDS, blocks)

    def bits_of(name: str, inputs: int) -> WeightBits | None:
        if name.startswith(LM_HEAD) and lm_head_bits == 16:
            return None
        found = next((size for size in blocks if size <= block and inputs % size == 0), None)
        return WeightBits(4, found) if found is not None else None

    older = dialect == "decomposed"
    passes: list[Pass] = [*forms.first_passes()] if precision == MIXED else []
    passes.append(SampleByPlugin(plugin) if plugin else SampleByGathers())
    if older:
        passes.append(DecomposeCachedAttention())
    else:
        # Encoders do without: fused kernels were wrong on some GPUs (NVIDIA/TensorRT#4837, #4723), and their
        # softmax may be fp16. They run once an image.
        keep = fused if stage == "llm" and precision != "fp32" else none_fused
        passes += [DecomposeCachedAttention(keep, tensor_scatter=True), DecomposeUnfusedAttention(keep)]
    passes += [SplitLmHead(lm_head_parts), common.InlinePass(), ResolveCastLike()]
    if older:
        passes.append(DecomposeOperators())
    if precision == "int4":
        passes.append(QuantizeWeights(bits_of))
    if precision == MIXED:
        passes += [*standard_weights(forms), *operands(forms)]
    if precision != "fp32":
        passes.append(UseMixedPrecision(is_cache))
    passes += [WidenWeights(), *CLEAN_UP]
    if older:
        blocked = precision == "int4" or any(form.block for form in forms.recipe.forms.values())
        passes.append(DowngradeOpset(21 if blocked else 20, ir_version=10))
    return passes
