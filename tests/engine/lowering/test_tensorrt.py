"""The TensorRT pipelines: stages in every dialect and precision, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine import Bundle, LiraError
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.accuracy import check_outputs, rms_error
from lira_engine.engines.llm_tensors import is_cache
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.tensorrt import tensorrt_pipeline

pytestmark = pytest.mark.portable
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16


def test_attention_without_a_fused_kernel_is_decomposed(new_graph: Any, counts: Any) -> None:
    """By number of heads and head size; in fp32 and in the encoders there is none."""
    for heads, columns, stage, precision, stays in (
        (8, 16, "llm", "fp16", True),
        (8, 8, "llm", "fp16", False),
        (8, 20, "llm", "fp16", False),
        (2, 64, "llm", "fp16", False),
        (8, 64, "llm", "fp32", False),
        (16, 64, "semantic_encoder", "fp16", False),
    ):
        g = new_graph([1, heads, 5, columns])
        model = g.finish(g.op("Attention", g.x, g.x, g.x, shape=[1, heads, 5, columns]))
        found = counts(apply(model, tensorrt_pipeline(stage, precision, "cache_update")))
        assert bool(found["Attention"]) == stays and bool(found["Softmax"]) != stays


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_cache_is_updated_in_place_also_without_fused_attention(
    nano_bundle: Path, precision: str, counts: Any
) -> None:
    bundle = Bundle.open(nano_bundle)
    passes = tensorrt_pipeline("llm", precision, "cache_update")
    found = counts(apply(ir.load(bundle.stage_file("llm")), passes))
    layers = bundle.manifest.model.num_layers
    assert found["TensorScatter"] == 2 * layers and not found["ScatterElements"]
    assert found["Attention"] == (layers if precision == "fp16" else 0)


@pytest.mark.parametrize("parts", [1, 2])
def test_an_lm_head_of_16_bits_has_no_part_in_int4(nano_bundle: Path, parts: int) -> None:
    passes = tensorrt_pipeline("llm", "int4", "cache_update", block=32, lm_head_bits=16, lm_head_parts=parts)
    weights = apply(ir.load(Bundle.open(nano_bundle).stage_file("llm")), passes).graph.initializers
    in_int4 = [name for name, value in weights.items() if value.dtype == ir.DataType.INT4]
    assert in_int4 and not any(name.startswith("lm_head") for name in in_int4)
    heads = [value for name, value in weights.items() if name.startswith("lm_head")]
    assert [value.dtype for value in heads] == [HALF] * parts


CASES = [
    (stage, precision, dialect)
    for dialect in ("cache_update", "decomposed")
    for precision in ("fp32", "fp16", "int4")
    for stage in STAGES
    if stage == "llm" or precision != "int4"
]


@pytest.mark.parametrize("stage, precision, dialect", CASES)
def test_lowered_stages_of_lira_nano_answer_as_recorded(
    nano_bundle: Path, stage: str, precision: str, dialect: str, run: Any, counts: Any
) -> None:
    bundle = Bundle.open(nano_bundle)
    passes = tensorrt_pipeline(stage, precision, dialect, block=32, lm_head_parts=2)
    model = apply(ir.load(bundle.stage_file(stage)), passes)
    assert {node.domain for node in model.graph} == {""} and not model.functions
    used = set(counts(model))
    assert "GridSample" not in used
    if dialect == "decomposed":
        assert not used & {
            "TensorScatter",
            "Attention",
            "RotaryEmbedding",
            "RMSNormalization",
            "Gelu",
            "CastLike",
        }
        assert model.opset_imports[""] <= 21
    vectors = bundle.check_vectors(stage)
    feeds = dict(vectors.inputs)
    for value in model.graph.inputs:  # check vectors leave an empty cache out
        name = value.name or ""
        if is_cache(name):
            sizes = [int(size) for size in value.shape]  # type: ignore[union-attr, arg-type]
            feeds.setdefault(name, np.zeros(sizes, np.float32))
    if precision != "fp32":
        feeds = {name: x.astype(np.float16) if is_cache(name) else x for name, x in feeds.items()}
        assert all((value.dtype == HALF) == is_cache(value.name or "") for value in model.graph.inputs)
        assert all((value.dtype == HALF) == is_cache(value.name or "") for value in model.graph.outputs)
    names = [value.name for value in model.graph.outputs]
    found = dict(zip(names, run(model, feeds), strict=True))
    expected = {name: array for name, array in vectors.outputs.items() if not is_cache(name)}
    assert expected
    if precision == "fp32":
        check_outputs(stage, "fp32", found, expected, vectors.noise)
    else:
        limit = {"fp16": 0.02, "int4": 0.6}[precision]
        for name, array in expected.items():
            if np.issubdtype(array.dtype, np.floating):
                assert rms_error(found[name], array) < limit, name


def test_refuses_unknown_stages_and_precisions() -> None:
    with pytest.raises(LiraError, match="nothing lowers sefe int4 for TensorRT: expected one of"):
        tensorrt_pipeline("sefe", "int4", "cache_update")
    with pytest.raises(LiraError, match=r"nothing lowers llm fp8 for TensorRT: .* int4, mixed"):
        tensorrt_pipeline("llm", "fp8", "cache_update")
