"""Positions beyond the trained length: the graph against arrays of upstream's dynamic NTK scaling."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine.errors import LiraError
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.pipeline import apply
from lira_engine.ort.llm import OrtLlm
from lira_export.checkpoint import Checkpoint
from lira_export.config import LiraConfig, LlmConfig
from lira_export.graphs.llm import build_llm
from lira_export.llm_tensors import LlmTensors

TOLERANCE = 2e-4
NTK_TRAINED_LENGTH = 64  # of llm_ntk.npz, where no README says another one


@pytest.fixture(scope="module")
def recorded(golden: Path) -> Mapping[str, np.ndarray]:
    with np.load(golden / "components" / "llm_ntk.npz", allow_pickle=False) as data:
        return dict(data)


@pytest.fixture(scope="module", params=["portable", "cpu"])
def llm(
    request: pytest.FixtureRequest,
    golden: Path,
    recorded: Mapping[str, np.ndarray],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[OrtLlm]:
    config = LiraConfig.from_dict(json.loads((golden / "config.json").read_text()), "golden", golden)
    tensors = LlmTensors(Checkpoint.open(golden / "split", config))
    model = build_llm(trained_shorter(config.llm, golden), tensors, recorded["long_embeds"].shape[1])
    if request.param != "portable":
        model = apply(model, cpu_pipeline("llm"))
    path = tmp_path_factory.mktemp("ntk") / "llm.onnx"
    ir.save(model, path)
    with OrtLlm(path, threads=1) as runner:
        yield runner


def trained_shorter(config: LlmConfig, golden: Path) -> LlmConfig:
    readme = golden / "README.md"
    said = re.search(r"max_position_embeddings=(\d+)", readme.read_text("utf-8") if readme.is_file() else "")
    length = int(said[1]) if said else NTK_TRAINED_LENGTH
    return replace(config, max_position_embeddings=length)


def test_golden_prefill_beyond_the_trained_length(llm: OrtLlm, recorded: Mapping[str, np.ndarray]) -> None:
    for name, expected in (("long", "long_logits"), ("short", "short_fresh_logits")):
        embeds = recorded[f"{name}_embeds"][0]
        found = llm.forward(embeds, llm.new_cache(), range(len(embeds)))
        np.testing.assert_allclose(found.logits, recorded[expected][0], rtol=0, atol=TOLERANCE)


def test_golden_steps_across_the_trained_length(
    llm: OrtLlm, recorded: Mapping[str, np.ndarray], golden: Path
) -> None:
    """Each step beyond it rotates its row by a larger base; rows in the KV cache keep theirs."""
    with np.load(golden / "components" / "llm.npz", allow_pickle=False) as data:
        table = data["embeds"]
    cache = llm.new_cache()
    llm.forward(recorded["cross_embeds"][0], cache)
    for token, expected in zip(recorded["cross_ids"], recorded["cross_logits"], strict=True):
        found = llm.forward(table[[token]], cache)
        np.testing.assert_allclose(found.logits[0], expected, rtol=0, atol=TOLERANCE)


def test_golden_no_scaling_no_positions(golden: Path) -> None:
    config = LiraConfig.from_dict(json.loads((golden / "config.json").read_text()), "golden", golden)
    fixed = replace(trained_shorter(config.llm, golden), rope_scaling_factor=None)
    with pytest.raises(LiraError, match=r"expected 1 to \d+, the positions that the model was trained for"):
        build_llm(fixed, {}, fixed.max_position_embeddings + 1)
