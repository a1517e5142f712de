"""The Qwen2 family against transformers' Qwen2 with the adapter merged by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Qwen2Config, Qwen2ForCausalLM

from lira_engine import open_engines
from lira_engine.bundle.bundle import Bundle
from lira_engine.errors import LiraError
from lira_export.checkpoint import Checkpoint
from lira_export.export import export_checkpoint
from lira_export.families.qwen2 import QWEN2
from lira_export.plan import ExportRequest, plan_export

PADDED, TOKENS = 32, 8  # rows of the base model's table, tokens of its tokenizer
WORDS = ("red", "ball", "<p>?", "x", "y", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLM = {
    "model_type": "qwen2", "vocab_size": PADDED, "hidden_size": 24, "intermediate_size": 40,
    "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 500.0, "tie_word_embeddings": True,
}  # fmt: skip
RANK, ALPHA = 2, 4


@pytest.fixture
def qwen2(copied_checkpoint: Path) -> tuple[Path, Qwen2ForCausalLM]:
    """The tiny checkpoint with a Qwen2 in InternVL's layout, and transformers' model with its weights."""
    torch.manual_seed(1)
    model = Qwen2ForCausalLM(Qwen2Config(**{k: v for k, v in LLM.items() if k != "model_type"})).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_(std=0.5)
        elif parameter.ndim > 1:
            parameter.normal_(std=0.3)
    base = next(copied_checkpoint.glob("internvl2-*"))
    tensors = load_file(base / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if not name.startswith("language_model.")}
    own = {f"language_model.{n}": p.clone() for n, p in model.named_parameters() if "lm_head" not in n}
    save_file(kept | own, base / "model.safetensors")

    lira = torch.load(copied_checkpoint / "LIRA-tiny.pth", weights_only=True)
    lira = {name: t for name, t in lira.items() if not name.startswith("llm.")}
    table = torch.randn(TOKENS + 6, LLM["hidden_size"])
    lira["llm.base_model.model.model.embed_tokens.weight"] = table
    for i, layer in enumerate(model.model.layers):
        for linear in QWEN2.linears:
            weight = layer.get_submodule(linear.name).weight
            a, b = torch.randn(RANK, weight.shape[1]), torch.randn(weight.shape[0], RANK) * 0.1
            stem = f"llm.base_model.model.model.layers.{i}.{linear.name}"
            lira[f"{stem}.lora_A.default.weight"], lira[f"{stem}.lora_B.default.weight"] = a, b
            weight += ALPHA / RANK * (b @ a)
    torch.save(lira, copied_checkpoint / "LIRA-tiny.pth")
    model.resize_token_embeddings(TOKENS + 6)
    model.model.embed_tokens.weight.copy_(table)
    model.tie_weights()

    config = json.loads((copied_checkpoint / "config.json").read_text())
    config |= {"llm_config": LLM, "bos_token_id": 5}
    (copied_checkpoint / "config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="x"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(base / "tokenizer.json"))
    return copied_checkpoint, model


def test_reference_and_engine_equal_transformers(
    qwen2: tuple[Path, Qwen2ForCausalLM], tmp_path: Path
) -> None:
    folder, model = qwen2
    embeds = torch.randn(1, 11, LLM["hidden_size"])
    expected = model(inputs_embeds=embeds).logits
    reference = Checkpoint.open(folder).load_model().llm(embeds)
    torch.testing.assert_close(reference.logits, expected, atol=2e-5, rtol=2e-5)
    bundle = export_checkpoint(folder, tmp_path / "bundle")
    with open_engines(bundle, "portable") as engines:
        cache = engines.llm.new_cache()
        rows = embeds[0].numpy()
        found = [engines.llm.forward(r, cache, range(len(r))).logits for r in (rows[:7], rows[7:8], rows[8:])]
    np.testing.assert_allclose(np.concatenate(found), expected[0], atol=2e-5, rtol=2e-5)


def test_bundle_has_qwen2s_vocabulary_prompts_and_tokens(
    qwen2: tuple[Path, Qwen2ForCausalLM], tmp_path: Path
) -> None:
    bundle = Bundle.open(export_checkpoint(qwen2[0], tmp_path / "bundle"))
    manifest = bundle.manifest
    # The base model's padding is gone: one row per token, LIRA's the last.
    assert (manifest.model.family, manifest.model.vocab_size) == ("qwen2", TOKENS + 6)
    assert (manifest.tokens.seg, manifest.tokens.image_id) == (TOKENS, TOKENS + 5)
    assert manifest.tokens.eos == (7, 5)
    assert manifest.prompts.system.endswith("<|im_end|>\n")
    assert manifest.prompts.user.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert manifest.model.rope_theta == LLM["rope_theta"]
    # The plan knows the same without reading LIRA's table.
    plan = plan_export(ExportRequest(str(qwen2[0]), tmp_path / "other")).bundle
    assert (plan.tokens, plan.prompts) == (manifest.tokens, manifest.prompts)
    assert plan.other_files["embeddings.npy"] == bundle.embeddings.nbytes


def test_a_base_model_of_another_family_is_refused(qwen2: tuple[Path, Qwen2ForCausalLM]) -> None:
    folder = qwen2[0]
    config = json.loads((folder / "config.json").read_text())
    config["llm_config"]["model_type"] = "internlm2"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LiraError, match=r"LIRA-tiny\.pth was trained on qwen2, .* is internlm2"):
        Checkpoint.open(folder)


def test_an_unknown_family_is_refused(qwen2: tuple[Path, Qwen2ForCausalLM]) -> None:
    folder = qwen2[0]
    config = json.loads((folder / "config.json").read_text())
    config["llm_config"]["model_type"] = "phi3"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LiraError, match="'phi3': expected one of internlm2, qwen2"):
        Checkpoint.open(folder)


def test_a_tokenizer_of_another_vocabulary_is_refused(
    qwen2: tuple[Path, Qwen2ForCausalLM], tmp_path: Path
) -> None:
    folder = qwen2[0]
    path = next(folder.glob("internvl2-*")) / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens(["one", "more"])
    tokenizer.save(str(path))
    with pytest.raises(LiraError, match=r"gives \[SEG\] the id 10, the checkpoint was trained with 8"):
        export_checkpoint(folder, tmp_path / "bundle")
