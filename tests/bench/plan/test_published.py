"""Predictions beside published and measured speeds, and the costs that they are made from."""

from __future__ import annotations

from collections import Counter

import pytest

from lira_bench.plan import measured, published
from lira_bench.plan.graph_costs import load
from lira_bench.plan.transformer_costs import Decoder, Vit


def test_a_decoder_costs_what_its_graph_does() -> None:
    """LIRA-2B's graph leaves the last layer's rows out before its logits; at one row both are the same."""
    counted, sizes = load("lira-2b"), load("lira-2b").model
    made = Decoder(
        sizes.hidden_size,
        sizes.num_layers,
        sizes.num_heads,
        sizes.num_kv_heads,
        sizes.intermediate_size,
        sizes.vocab_size,
    ).costs()
    llm = counted.stages["llm"]
    one = {"S": 1.0, "K": 1.0, "context": 100.0}
    assert made.flops(one) == pytest.approx(llm.flops(one))
    assert made.products == llm.products

    def shapes(matrices: object) -> Counter[tuple[int, int]]:
        return Counter({(m.inputs, m.outputs): m.count for m in matrices})  # type: ignore[attr-defined]

    assert shapes(made.matrices) == shapes(llm.matrices)
    assert sum(made.moved.values()) == sum(llm.moved.values())


def test_a_vit_costs_what_its_graph_does() -> None:
    """InternViT-300M, without its class token, patches of 14 and another merger."""
    counted = load("lira-2b").stages["semantic_encoder"]
    made = Vit(1024, 24, 4096, 2048, taps=0, patch=3 * 14 * 14).costs()
    flops = made.flops({"P": 1025.0})
    assert flops["attention"] == pytest.approx(counted.flops({"T": 1.0})["attention"], rel=1e-3)
    assert flops["linear"] == pytest.approx(counted.flops({"T": 1.0})["linear"], rel=0.02)


def test_published_sizes_are_those_of_the_models() -> None:
    """Parameters with embeddings tied or not, as the models' names round them."""
    for name, billions in (("Qwen3-0.6B", 0.6), ("Qwen3-4B", 4.0), ("Qwen3-8B", 7.6)):
        decoder, _ = published.MODELS[name]
        assert decoder.costs().parameters / 1e9 == pytest.approx(billions, rel=0.02), name
    _, vit = published.MODELS["Qwen3-VL-2B"]
    assert vit is not None and vit.costs().parameters / 1e9 == pytest.approx(0.405, rel=0.02)


@pytest.mark.parametrize("row", published.ROWS, ids=lambda row: f"{row.device}-{row.model}-{row.what}")
def test_predictions_are_near_what_was_published(row: published.Row) -> None:
    error = published.predicted(row).error
    if row.source == published.EDGE_LLM_04 and row.what != "decode":
        assert -0.45 < error < -0.1, "older kernels, slower than the shares"
    else:
        assert abs(error) < 0.13


def test_the_compared_model_was_not_fitted_to() -> None:
    held = [row for row in published.ROWS if row.model == "Qwen3-VL-2B"]
    assert {row.device.partition("-")[0] for row in held} == {"orin", "agx", "thor"}
    assert not [row for row in held if row.fitted]
    assert {row.what for row in published.ROWS if row.fitted} == {"decode", "prefill", "vit"}


@pytest.mark.parametrize("row", measured.ROWS, ids=lambda row: f"{row.device.family}-{row.name()}")
def test_predictions_are_near_what_was_measured(row: measured.Row) -> None:
    error = measured.predicted(row).error
    if row.stage == "pixel_decoder":
        assert -0.7 < error < -0.4, "many small matmuls, whose fixed cost a roofline lacks"
    elif row.second_copy and row.rows < 500:
        assert -0.25 < error < -0.1, "reading and packing all weights, which the model lacks"
    else:
        assert abs(error) < (0.09 if row.fitted else 0.11)
