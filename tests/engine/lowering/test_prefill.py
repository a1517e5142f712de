"""The language model's graphs for passes of many rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.engines.llm_tensors import HIDDEN_OUT, PASS_INPUTS
from lira_engine.engines.recipe import Form, StageRecipe
from lira_engine.lowering.cpu import cpu_prefill
from lira_engine.lowering.prefill import weights_of
from lira_export.config import LlmConfig

CONFIG = LlmConfig(
    vocab_size=23,
    hidden_size=64,
    intermediate_size=24,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
)
RandomLlm = Callable[..., ir.Model]


def outputs_of(model: ir.Model) -> list[str | None]:
    return [value.name for value in model.graph.outputs]


def test_layers_share_a_graph_and_the_last_makes_no_rows(random_llm: RandomLlm) -> None:
    first, last = cpu_prefill(random_llm(CONFIG, 32), "int4")
    assert (first.layers, last.layers) == ([0, 1, 2], [3])
    assert outputs_of(first.models[0]) == [HIDDEN_OUT, "key_cache_out", "value_cache_out"]
    assert outputs_of(last.models[0]) == ["key_cache_out", "value_cache_out"]
    for group in (first, last):
        for model in group.models:
            names = [value.name for value in model.graph.inputs]
            assert tuple(names[:4]) == PASS_INPUTS
            assert not any("layers." in str(name) for name in names)
            assert not [name for name in model.graph.initializers if name.startswith("layers.")]
            assert "logit_positions" not in names
    assert {value.name for value in weights_of(last.models[0])} == {
        "attention_norm",
        *(f"{part}.q8.0{end}" for part in "kv" for end in ("", ".scales")),
    }


def test_layers_differ_in_their_weights_alone(random_llm: RandomLlm) -> None:
    model = random_llm(CONFIG, 32)
    group = cpu_prefill(model, "int8")[0]
    for layer, one in zip(group.layers, group.models, strict=True):
        values = {value.name: value.const_value.numpy() for value in weights_of(one)}  # type: ignore[union-attr]
        stored = model.graph.initializers[f"layers.{layer}.down"].const_value
        assert stored is not None
        found = values["down.q8.0"] * values["down.q8.0.scales"]
        np.testing.assert_allclose(found, stored.numpy(), atol=np.abs(stored.numpy()).max() / 250)


@pytest.mark.parametrize("precision, recipe", [("fp32", None), ("mixed", StageRecipe())])
def test_float_weights_have_none(random_llm: RandomLlm, precision: str, recipe: StageRecipe | None) -> None:
    assert cpu_prefill(random_llm(CONFIG, 32), precision, recipe) == []


def test_what_a_recipe_keeps_from_eight_bits_is_fed_as_it_is(random_llm: RandomLlm) -> None:
    """Floats, and 8-bit blocks: their inputs have rows with huge values."""
    parts = ("q", "k", "v", "o", "gate", "up", "down")
    forms = {f"layers.{i}.{part}": Form("int4", block=32) for i in range(4) for part in parts}
    del forms["layers.1.down"]
    forms["layers.2.up"] = Form("int8", block=32)
    groups = cpu_prefill(random_llm(CONFIG, 32), "mixed", StageRecipe(forms))
    assert [group.layers for group in groups] == [[0], [1], [2], [3]]
    names = [{value.name for value in weights_of(group.models[0])} for group in groups]
    assert {"up.q8.0", "down.q8.0"} <= names[0]
    assert "down" in names[1] and "down.q8.0" not in names[1]
    assert "up" in names[2] and "up.q8.0" not in names[2]


def test_a_rotation_that_grows_has_none(random_llm: RandomLlm) -> None:
    scaled = {"max_position_embeddings": 16, "rope_scaling_factor": 2.0}
    config = LlmConfig(**{**CONFIG.__dict__, **scaled})
    assert cpu_prefill(random_llm(config, 32), "int4") == []
