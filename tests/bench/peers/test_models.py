"""The language model for the peers, and the installed peers, compared with our own engine.

A peer in an environment of its own is tested too where LIRA_PEER_PYTHON_NAME names its interpreter.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lira_bench.peers import PEERS, compare
from lira_bench.peers.llama_cpp import interleaved
from lira_bench.peers.own import OwnModel, open_own_llm
from lira_bench.peers.process import Worker
from lira_bench.peers.tensor_files import read_folder
from lira_bench.peers.weights import write_folder
from lira_bench.peers.worker import prompt_ids
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.graphs import external_locations
from lira_engine.errors import LiraError

# How many of the vocabulary's 320 tokens ours may find likelier than what the peer chose. Ours is fp32. The
# 4-bit peers chose the third at worst when this was written; a wrong rotation or a transposed matrix gives
# any rank.
RANKS = {"optimum": 0, "genai": 5, "llama-cpp": 5, "llama-cpp-q5": 5, "openvino": 5}
STEPS = 6


def own_logits(bundle: Path, ids: list[int]) -> np.ndarray:
    """Return the logits [len(ids), V] of the portable graph, in two passes."""
    opened = Bundle.open(bundle)
    rows = np.asarray(opened.embeddings[ids], np.float32)
    with open_own_llm(opened, "portable", "fp32", 1) as llm:
        cache = llm.new_cache()
        parts = (rows[:-1], rows[-1:])
        return np.concatenate([llm.forward(part, cache, range(len(part))).logits for part in parts])


@pytest.mark.parametrize(
    ("family", "dtype", "kind"),
    [
        ("internlm2", ir.DataType.FLOAT, "LlamaForCausalLM"),
        ("internlm2", ir.DataType.BFLOAT16, "LlamaForCausalLM"),
        ("qwen2", ir.DataType.FLOAT, "Qwen2ForCausalLM"),
    ],
)
def test_transformers_computes_our_logits(
    family: str, dtype: ir.DataType, kind: str, tmp_path: Path, write_language_bundle: Callable[..., Path]
) -> None:
    """Both sides are fp32 with other kernels and orders of sums: 1e-4 of logits of a few units."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    bundle = write_language_bundle(tmp_path / "bundle", family, dtype)
    out = tmp_path / "hf"
    out.mkdir()
    write_folder(Bundle.open(bundle), out, shard_bytes=1 << 20)
    assert len(list(out.glob("model-*.safetensors"))) > 2
    kept = "bfloat16" if dtype == ir.DataType.BFLOAT16 else "float32"
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == kept
    # In fp32, as ours computes: in bf16 the table of embeddings would be rounded too.
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert type(model).__name__ == kind
    ids = prompt_ids(320, 24)
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(own_logits(bundle, ids), expected, atol=1e-5, rtol=1e-5)


def test_the_folder_has_the_sizes_of_the_bundle(language_bundle: Path, tmp_path: Path) -> None:
    opened = Bundle.open(language_bundle)
    write_folder(opened, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["max_position_embeddings"], config["eos_token_id"], config["bos_token_id"]) == (
        128,
        [2],
        1,
    )
    assert (tmp_path / "tokenizer.json").read_bytes() == opened.tokenizer_file.read_bytes()
    tensors = read_folder(tmp_path)
    assert len(tensors) == 3 + 2 * 9  # embeddings, norm, head; nine per layer
    np.testing.assert_array_equal(tensors["model.embed_tokens.weight"].read(), opened.embeddings)
    assert tensors["model.layers.1.mlp.down_proj.weight"].shape == (256, 512)


def test_an_unknown_family_is_refused(tmp_path: Path, language_bundle: Path) -> None:
    bundle = Bundle.open(language_bundle)
    other = replace(bundle.manifest, model=replace(bundle.manifest.model, family="mamba"))
    with pytest.raises(LiraError, match="'mamba', expected one of internlm2, qwen2"):
        write_folder(replace(bundle, manifest=other), tmp_path)
    assert not list(tmp_path.iterdir())


def test_external_data_stays_in_the_bundle(language_bundle: Path) -> None:
    """The test bundle is like true ones: its weights are in a file beside the graph."""
    assert external_locations(Bundle.open(language_bundle).stage_file("llm")) == {"llm.onnx.data"}


def test_interleaved_rows_keep_the_attention_scores() -> None:
    """llama.cpp with interleaved rows computes what Hugging Face computes with ours: q and k are permuted
    together, so that their dot products stay."""
    random = np.random.default_rng(0)
    heads, size, width = 2, 8, 5
    q, k = (random.standard_normal((heads * size, width)) for _ in range(2))
    x = random.standard_normal(width)
    angle = random.standard_normal(size // 2)

    def rotated(v: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        out = np.empty_like(v)
        out[:, first] = v[:, first] * np.cos(angle) - v[:, second] * np.sin(angle)
        out[:, second] = v[:, second] * np.cos(angle) + v[:, first] * np.sin(angle)
        return out

    n = np.arange(size)
    halves = [rotated((m @ x).reshape(heads, size), n[: size // 2], n[size // 2 :]) for m in (q, k)]
    pairs = [
        rotated((interleaved(m, heads) @ x).reshape(heads, size), n[::2], n[1::2]) for m in (q, k)
    ]  # fmt: skip
    np.testing.assert_allclose(*((a * b).sum(-1) for a, b in (halves, pairs)))


def test_each_turn_of_ours_starts_with_an_empty_cache(language_bundle: Path) -> None:
    model = OwnModel(language_bundle, "portable", "fp32", 1)
    first, again = (model.turn(prompt_ids(320, 16), STEPS) for _ in range(2))
    model.close()
    assert first.tokens == again.tokens and len(first.tokens) == STEPS + 2
    assert first.prefill_s > 0 and first.decode_s > 0
    ids = [*prompt_ids(320, 16), *first.tokens]
    assert own_logits(language_bundle, ids)[15:-1].argmax(-1).tolist() == first.tokens


@pytest.fixture(scope="module")
def converted_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the peers' models, with the folder that all are converted from."""
    return tmp_path_factory.mktemp("converted")


def python_of(name: str, work: Path) -> str:
    """Return the peer's interpreter. Skips the test if that lacks the peer."""
    python = os.environ.get(PEERS[name].python_variable, sys.executable)
    with Worker(name, python, work / f"{name}.log") as worker:
        lacking = worker.ask("about")["missing"]
    if lacking:
        pytest.skip(f"{', '.join(lacking)} not installed")
    return python


@pytest.mark.parametrize("name", RANKS)
def test_an_installed_peer_is_measured_and_agrees_with_us(
    name: str, language_bundle: Path, converted_in: Path
) -> None:
    """It is measured, and its tokens are those of our fp32 model, within its quantization."""
    python = python_of(name, converted_in)
    given = {"threads": 1, "prompt_tokens": 16, "steps": STEPS, "rounds": 2, "progress": [].append}
    (result,) = compare(language_bundle, "portable", "fp32", [name], converted_in, **given)
    assert result.status == "measured", result.reason
    assert result.ratio_min and 0 < result.ratio_min <= result.ratio_max
    assert result.ran.startswith(PEERS[name].package) and "?" not in result.ran
    assert result.peer_peak_rss_mib and result.peer_peak_rss_mib > 10

    (folder,) = converted_in.glob(f"{name}-{12 * '?'}")
    with Worker(name, python, converted_in / f"{name}.log") as worker:
        worker.ask("prepare", bundle=str(language_bundle), folder=str(folder), threads=1)
        first, again = (worker.ask("turn", tokens=16, steps=STEPS)["tokens"] for _ in range(2))
    assert first == again and len(first) == STEPS + 2
    logits = own_logits(language_bundle, [*prompt_ids(320, 16), *first])[15:-1]
    ranks = [int((row > row[token]).sum()) for row, token in zip(logits, first, strict=True)]
    assert max(ranks) <= RANKS[name], ranks


def test_all_peers_but_torch_are_tested_here() -> None:
    assert set(RANKS) == {name for name, peer in PEERS.items() if peer.measures == "language model"}
