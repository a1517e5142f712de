"""The CPU pipeline of the language model: each part of it leaves the results as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_ir.passes import common

from lira_engine.errors import LiraError
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.passes.decompose_cached_attention import DecomposeCachedAttention
from lira_engine.lowering.passes.fuse_residual_norm import FuseResidualNorm
from lira_engine.lowering.passes.use_group_query_attention import UseGroupQueryAttention
from lira_engine.lowering.passes.use_simplified_layer_normalization import UseSimplifiedLayerNormalization
from lira_engine.lowering.pipeline import Pass, apply
from lira_engine.ort.llm import OrtLlm
from lira_export.config import LlmConfig
from lira_export.graphs.llm import build_llm
from lira_export.model.language_model import LanguageModel

CAPACITY = 32
CHUNKS = (7, 1, 1, 5, 1, 9, 1)
"""Rows per call: prefill, decode steps, several rows on a filled cache."""


def config(heads: int, kv_heads: int, size: int) -> LlmConfig:
    return LlmConfig(
        vocab_size=29,
        hidden_size=heads * size,
        intermediate_size=40,
        num_layers=2,
        num_heads=heads,
        num_kv_heads=kv_heads,
        rope_theta=1e4,
        rms_norm_eps=1e-5,
    )


def reference(c: LlmConfig) -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(c).eval()


def weights(c: LlmConfig) -> dict[str, np.ndarray]:
    named = reference(c).named_parameters()
    return {name.removesuffix(".weight"): tensor.detach().numpy() for name, tensor in named}


def portable(heads: int = 6, kv_heads: int = 3, size: int = 16) -> ir.Model:
    c = config(heads, kv_heads, size)
    return build_llm(c, weights(c), CAPACITY)


def counts(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


ATTENTION = [UseGroupQueryAttention(), DecomposeCachedAttention(), common.InlinePass()]
NORMS = [UseSimplifiedLayerNormalization(), FuseResidualNorm()]


@pytest.mark.parametrize("heads, kv_heads, size", [(6, 3, 16), (4, 4, 32), (5, 1, 16), (6, 3, 8), (4, 2, 6)])
@pytest.mark.parametrize(
    "passes",
    [
        pytest.param([], marks=pytest.mark.portable, id="none"),
        pytest.param(ATTENTION, marks=pytest.mark.portable, id="attention"),
        pytest.param(NORMS, marks=pytest.mark.portable, id="norms"),
        pytest.param(cpu_pipeline("llm"), id="cpu"),
    ],
)
def test_results_are_those_of_the_reference(
    heads: int, kv_heads: int, size: int, passes: Sequence[Pass], tmp_path: Path
) -> None:
    """In prefill, chunks and decode steps; with head counts that are no powers of two; with head sizes that
    GroupQueryAttention takes, and that it refuses."""
    c = config(heads, kv_heads, size)
    embeds = np.random.default_rng(1).standard_normal((sum(CHUNKS), c.hidden_size), dtype=np.float32)
    with torch.no_grad():
        expected = reference(c)(torch.from_numpy(embeds)[None])
    ir.save(apply(portable(heads, kv_heads, size), passes), tmp_path / "llm.onnx")
    with OrtLlm(tmp_path / "llm.onnx", threads=1) as llm:
        cache, start = llm.new_cache(), 0
        for rows in CHUNKS:
            at = slice(start, start + rows)
            found = llm.forward(embeds[at], cache, range(rows))
            np.testing.assert_allclose(found.logits, expected.logits[0, at].numpy(), rtol=0, atol=4e-6)
            np.testing.assert_allclose(found.hidden, expected.hidden_states[0, at].numpy(), rtol=0, atol=1e-5)
            start += rows


def test_each_layer_has_one_attention_node() -> None:
    model = apply(portable(), cpu_pipeline("llm"))
    found = counts(model)
    assert found["GroupQueryAttention"] == 2
    assert not {"Transpose", "Reshape", "Range", "Unsqueeze"} & found.keys()
    assert model.opset_imports == {"": 21, "com.microsoft": 1}
    assert model.ir_version == 10
    assert not model.functions


def test_head_sizes_that_group_query_attention_refuses_are_decomposed() -> None:
    model = apply(portable(size=8), cpu_pipeline("llm"))
    found = counts(model)
    assert found["GroupQueryAttention"] == 0
    assert found["ScatterElements"] == 4
    assert (
        found["LessOrEqual"] == found["Range"] - 1 == 1
    )  # layers share the mask; the other Range counts rows


def test_lowering_reads_no_weights() -> None:
    """A large model is lowered without loading it."""

    class Unreadable(dict[str, np.ndarray]):
        def __getitem__(self, name: str) -> np.ndarray:
            raise AssertionError(f"{name} was read")

    c = config(6, 3, 16)
    apply(build_llm(c, Unreadable(weights(c)), CAPACITY), cpu_pipeline("llm"))


def test_refuses_unknown_stages_and_precisions() -> None:
    with pytest.raises(
        LiraError,
        match=r"nothing lowers llm int3 for the CPU: expected one of semantic_encoder, .*, and fp32, int8",
    ):
        cpu_pipeline("llm", "int3")
    with pytest.raises(LiraError, match="nothing lowers toaster fp32 for the CPU"):
        cpu_pipeline("toaster", "fp32")
