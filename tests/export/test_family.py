"""A language model family is one object: a toy family in the table is all that an export needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from lira_engine.bundle.bundle import Bundle
from lira_export import families
from lira_export.checkpoint import Checkpoint
from lira_export.checkpoint_writer import write_checkpoint
from lira_export.config import LiraConfig
from lira_export.export import export_checkpoint
from lira_export.families.family import Family, Linear, Packing, Vocabulary, chat
from lira_export.model.lira import Lira
from lira_export.synthetic.presets import Preset, preset
from lira_export.synthetic.synthesize import synthesize
from lira_export.synthetic.vocabularies import stand_in_tokenizer


def unpack(packed: torch.Tensor, kv_heads: int, head_dim: int) -> Mapping[str, torch.Tensor]:
    """Values first, then keys, then queries."""
    rows = kv_heads * head_dim
    return {"v": packed[:rows], "k": packed[rows : 2 * rows], "q": packed[2 * rows :]}


TOY = Family(
    name="toy",
    embeddings="tok",
    head="out",
    head_is_adapted=False,
    linears=(
        Linear("mix.all", ("q", "k", "v"), packing=Packing(unpack, lambda q, k, v, *_: torch.cat([v, k, q]))),
        Linear("mix.back", ("o",)),
        Linear("ffn.a", ("gate",)),
        Linear("ffn.b", ("up",)),
        Linear("ffn.c", ("down",)),
    ),
    norms={"attention_norm": "n1", "ffn_norm": "n2"},
    padded_vocabulary=False,
    eos=("<end>",),
    bos_token_id=1,
    prompts=chat("<toy>", "<image> {question}<end>", "<end>"),
    vocabulary=Vocabulary(600, ("<end>",), byte_level=True),
)


@pytest.fixture(autouse=True)
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(families.FAMILIES, TOY.name, TOY)


def test_a_checkpoint_of_a_toy_family_is_exported(
    make_lira: Any, copied_checkpoint: Path, tmp_path: Path
) -> None:
    made: Lira = make_lira()
    made.config = replace(made.config, llm=replace(made.config.llm, family="toy"))
    made.llm.config = made.config.llm
    data = json.loads((copied_checkpoint / "config.json").read_text())
    data["llm_config"]["model_type"] = "toy"
    words = {word: i for i, word in enumerate(("a", "b", "c", "<end>", "e", "f"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    embed = made.pixel_encoder.mask_decoder.class_embed
    write_checkpoint(made, embed, data, tokenizer, tmp_path / "toy", "toy", dtype=torch.float32)

    bundle = Bundle.open(export_checkpoint(tmp_path / "toy", tmp_path / "bundle"))
    assert bundle.manifest.model.family == "toy"
    assert bundle.manifest.prompts == TOY.prompts and bundle.manifest.tokens.eos == (3,)
    checkpoint = Checkpoint.open(tmp_path / "toy")
    for name, parameter in made.llm.named_parameters():
        torch.testing.assert_close(checkpoint.tensor(f"llm.{name}"), parameter, atol=3e-7, rtol=3e-7)


def test_a_toy_family_is_synthesized(tmp_path: Path) -> None:
    data = json.loads(json.dumps(preset("lira-2b").base_config))
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 601}
    data["llm_config"] |= {"model_type": "toy", "hidden_size": 32, "num_hidden_layers": 1, **sizes}
    data["llm_config"]["intermediate_size"] = 48
    data["vision_config"] |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    data["vision_config"]["num_attention_heads"] = 2
    made = Preset("LIRA-toy", "base", data, 2, lambda: stand_in_tokenizer(TOY))
    checkpoint = Checkpoint.open(synthesize(made, tmp_path / "toy"))
    expected: LiraConfig = made.config
    assert checkpoint.config.llm.family == "toy"
    assert checkpoint.config.llm.vocab_size == expected.llm.vocab_size == 601 + 6
