"""Query, key and value projections in one matmul give what three give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.passes.pack_qkv import PackQkv
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.quantization import Quantization
from lira_engine.ort.llm import OrtLlm
from lira_export.config import LlmConfig

CONFIG = LlmConfig(
    vocab_size=40,
    hidden_size=96,
    intermediate_size=64,
    num_layers=2,
    num_heads=6,
    num_kv_heads=3,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
)
CHUNKS = (7, 1, 1, 5, 1)
Lowered = Callable[..., ir.Model]


@pytest.fixture(scope="session")
def lowered(random_llm: Callable[[LlmConfig, int], ir.Model]) -> Lowered:
    def lower(precision: str, packed: bool, config: LlmConfig = CONFIG) -> ir.Model:
        passes = cpu_pipeline("llm", precision, Quantization(32))
        return apply(random_llm(config, 32), [one for one in passes if packed or type(one) is not PackQkv])

    return lower


def answers(model: ir.Model, path: Path) -> np.ndarray:
    """Logits of prefill, steps and chunks."""
    ir.save(model, path)
    embeds = np.random.default_rng(1).standard_normal((sum(CHUNKS), CONFIG.hidden_size), dtype=np.float32)
    found, start = [], 0
    with OrtLlm(path, threads=1) as llm:
        cache = llm.new_cache()
        for rows in CHUNKS:
            found.append(llm.forward(embeds[start : start + rows], cache, range(rows)).logits)
            start += rows
    return np.concatenate(found)


def counts(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def test_three_matmuls_become_one(lowered: Lowered, tmp_path: Path) -> None:
    three, one = lowered("int4", packed=False), lowered("int4", packed=True)
    assert counts(three)["MatMulNBits"] - counts(one)["MatMulNBits"] == 2 * CONFIG.num_layers
    assert not any(".q.q4" in name for name in one.graph.initializers)
    expected = answers(three, tmp_path / "three.onnx")
    assert np.abs(expected).max() > 0.1
    # The same sums; kernels may add in another order.
    np.testing.assert_allclose(answers(one, tmp_path / "one.onnx"), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_projections_in_other_precisions_stay(lowered: Lowered, precision: str) -> None:
    assert counts(lowered(precision, packed=True)) == counts(lowered(precision, packed=False))


def test_projections_with_biases_stay(lowered: Lowered) -> None:
    config = replace(CONFIG, family="qwen2")
    assert counts(lowered("int4", True, config)) == counts(lowered("int4", False, config))


def test_projections_of_different_inputs_stay(lowered: Lowered, assert_unchanged: Any) -> None:
    model = lowered("int4", packed=False)
    for attention in [node for node in model.graph if node.op_type == "GroupQueryAttention"]:
        key = attention.inputs[1].producer()
        key.replace_input_with(0, attention.inputs[0])
    assert_unchanged(PackQkv(), model)


@pytest.mark.parametrize("key", ["K", "bits", "block_size", "accuracy_level"])
def test_projections_that_are_stored_otherwise_stay(
    lowered: Lowered, assert_unchanged: Any, key: str
) -> None:
    model = lowered("int4", packed=False)
    for attention in [node for node in model.graph if node.op_type == "GroupQueryAttention"]:
        value = attention.inputs[2].producer()
        value.attributes[key] = ir.AttrInt64(key, value.attributes[key].as_int() * 2)
    assert_unchanged(PackQkv(), model)


def test_projections_with_zero_points_stay(lowered: Lowered, assert_unchanged: Any) -> None:
    """A fourth input is no weight that joins."""
    model = lowered("int4", packed=False)
    for attention in [node for node in model.graph if node.op_type == "GroupQueryAttention"]:
        query = attention.inputs[0].producer()
        query.resize_inputs(4)
        query.replace_input_with(3, query.inputs[1])
    assert_unchanged(PackQkv(), model)


def test_projections_that_are_left_are_noticed(lowered: Lowered, assert_unchanged: Any) -> None:
    with pytest.raises(ir.passes.PostconditionError, match=r"the projections of .* were not joined"):
        PackQkv().ensures(lowered("int4", packed=False))
    assert_unchanged(PackQkv(), lowered("int4", packed=True))
