"""Write a model as the five files of upstream's checkpoints, the reverse of :mod:`lira_export.checkpoint`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from lira_engine.system.atomic import atomic_directory

from .config import LIRA_TOKENS
from .families import LLM_PREFIX, family_of
from .model.lira import Lira
from .upstream_names import vision_source


def write_checkpoint(
    model: Lira,
    class_embed: Tensor,
    config: Mapping[str, Any],
    base_tokenizer: Tokenizer,
    folder: Path,
    name: str,
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
) -> None:
    """Write ``folder``, whole or not at all.

    Each weight W of the language model becomes a base and a LoRA pair, W = base + alpha / r * B @ A, as
    upstream stores them. Embeddings and LM head go to LIRA's file; the base model's own lack the rows of the
    six LIRA tokens.

    Args:
        class_embed: [classes, prototypes, dim].
        config: the folder's ``config.json``; ``lora`` gives rank and alpha.
        base_tokenizer: without LIRA's tokens.
        name: of the files LIRA-{name}.pth and internvl2-{name}/.
        dtype: of all tensors but the class embeddings.

    Raises:
        LiraError: ``folder`` exists already, or cannot be written.
    """
    with atomic_directory(folder, overwrite=overwrite, marker="config.json") as out:
        files = _upstream_tensors(model, config["lora"]["r"], config["lora"]["lora_alpha"])
        stored = {
            role: {key: t.detach().to(dtype).contiguous() for key, t in tensors.items()}
            for role, tensors in files.items()
        }
        torch.save(stored["lira"], out / f"LIRA-{name}.pth")
        torch.save({"state_dict": stored["head"]}, out / "omg_seg_convl.pth")
        torch.save(stored["clip"], out / "open_clip_pytorch_model.bin")
        torch.save(
            class_embed.float().contiguous().clone(), out / "convnext_large_d_320_CocoPanopticOVDataset.pth"
        )
        base = out / f"internvl2-{name}"
        base.mkdir()
        save_file(stored["base"], base / "model.safetensors", metadata={"format": "pt"})
        base_tokenizer.save(str(base / "tokenizer.json"))
        llm = dict(config["llm_config"])
        llm["vocab_size"] -= len(LIRA_TOKENS)
        internvl = {key: config[key] for key in ("vision_config", "downsample_ratio")} | {"llm_config": llm}
        _write_json(base / "config.json", internvl)
        _write_json(out / "config.json", config)


def _upstream_tensors(model: Lira, rank: int, alpha: float) -> dict[str, dict[str, Tensor]]:
    """Return role -> upstream's name of a tensor -> its value."""
    files: dict[str, dict[str, Tensor]] = {"lira": {}, "base": {}, "head": {}, "clip": {}}
    weights = dict(model.named_parameters())
    for name, tensor in weights.items():
        if not name.startswith("llm."):
            role, upstream = vision_source(name)
            files[role][upstream] = tensor
    config = model.config.llm
    family = family_of(config.family)
    base, lira = files["base"], files["lira"]
    generator = torch.Generator().manual_seed(0)

    def without_adapter(weight: Tensor, stem: str) -> Tensor:
        """Draw a LoRA pair into LIRA's file and return what the base model holds beside it."""
        a = torch.randn(rank, weight.shape[1], generator=generator) * weight.shape[1] ** -0.5
        b = torch.randn(weight.shape[0], rank, generator=generator) * 0.02
        lira[f"{LLM_PREFIX}{stem}.lora_A.default.weight"] = a
        lira[f"{LLM_PREFIX}{stem}.lora_B.default.weight"] = b
        return weight.detach() - alpha / rank * (b @ a)

    for i in range(config.num_layers):
        ours, theirs = f"llm.layers.{i}.", f"model.layers.{i}."
        for linear in family.linears:
            parts = [weights[f"{ours}{part}.weight"] for part in linear.parts]
            packed: Tensor = parts[0]
            if linear.packing is not None:
                q, k, v = parts
                packed = linear.packing.pack(q, k, v, config.num_kv_heads, config.head_dim)
            stem = theirs + linear.name
            base[f"language_model.{stem}.weight"] = without_adapter(packed, stem)
            if linear.bias:
                base[f"language_model.{stem}.bias"] = weights[f"{ours}{linear.parts[0]}.bias"]
        for norm, upstream in family.norms.items():
            base[f"language_model.{theirs}{upstream}.weight"] = weights[f"{ours}{norm}.weight"]
    base["language_model.model.norm.weight"] = weights["llm.norm.weight"]
    table, head = weights["llm.tok_embeddings.weight"], weights["llm.lm_head.weight"]
    lira[f"{LLM_PREFIX}{family.embeddings}.weight"] = table
    if family.head_is_adapted:
        lira[f"{LLM_PREFIX}{family.head}.base_layer.weight"] = without_adapter(head, family.head)
    else:
        lira[f"{LLM_PREFIX}{family.head}.weight"] = head
    known = config.vocab_size - len(LIRA_TOKENS)
    base[f"language_model.{family.embeddings}.weight"] = table[:known]
    base[f"language_model.{family.head}.weight"] = head[:known]
    return files


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
