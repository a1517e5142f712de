"""Write a model as the five files that upstream's users have: :mod:`lira_export.checkpoint` backwards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from lira_engine.system.atomic import atomic_directory

from .checkpoint import vision_source
from .config import LlmConfig
from .families import INTERNLM2, LLM_PREFIX
from .model.lira import Lira
from .tokenizer import LIRA_TOKENS


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
    """Write ``folder`` atomically.

    The language model's trained weights become a base and a LoRA pair, W = base + alpha / r * B @ A, as
    upstream stores them. Embeddings and LM head go to LIRA's file; the base model keeps its rows without the
    six LIRA tokens.

    Args:
        config: the folder's ``config.json``; ``lora`` gives rank and alpha.
        name: LIRA-{name}.pth and internvl2-{name}/.
        dtype: of all tensors but the class embeddings.
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
    files: dict[str, dict[str, Tensor]] = {"lira": {}, "base": {}, "head": {}, "clip": {}}
    weights = dict(model.named_parameters())
    for name, tensor in weights.items():
        if not name.startswith("llm."):
            role, upstream = vision_source(name)
            files[role][upstream] = tensor
    config = model.config.llm
    generator = torch.Generator().manual_seed(0)

    def split(weight: Tensor, stem: str) -> Tensor:
        a = torch.randn(rank, weight.shape[1], generator=generator) * weight.shape[1] ** -0.5
        b = torch.randn(weight.shape[0], rank, generator=generator) * 0.02
        files["lira"][f"{LLM_PREFIX}{stem}.lora_A.default.weight"] = a
        files["lira"][f"{LLM_PREFIX}{stem}.lora_B.default.weight"] = b
        return weight.detach() - alpha / rank * (b @ a)

    for i in range(config.num_layers):
        for linear in INTERNLM2.linears:
            parts = [weights[f"llm.layers.{i}.{part}.weight"] for part in linear.parts]
            stem = f"model.layers.{i}.{linear.name}"
            packed = _pack_qkv(parts, config) if len(parts) > 1 else parts[0]
            files["base"][f"language_model.{stem}.weight"] = split(packed, stem)
        for norm in ("attention_norm", "ffn_norm"):
            files["base"][f"language_model.model.layers.{i}.{norm}.weight"] = weights[
                f"llm.layers.{i}.{norm}.weight"
            ]
    files["base"]["language_model.model.norm.weight"] = weights["llm.norm.weight"]
    table, head = weights["llm.tok_embeddings.weight"], weights["llm.lm_head.weight"]
    files["lira"][f"{LLM_PREFIX}model.tok_embeddings.weight"] = table
    files["lira"][f"{LLM_PREFIX}output.base_layer.weight"] = split(head, "output")
    known = config.vocab_size - len(LIRA_TOKENS)
    files["base"]["language_model.model.tok_embeddings.weight"] = table[:known]
    files["base"]["language_model.output.weight"] = head[:known]
    return files


def _pack_qkv(parts: Sequence[Tensor], config: LlmConfig) -> Tensor:
    """Rows per KV head: its query heads, its key, its value."""
    groups = [part.view(config.num_kv_heads, -1, config.head_dim, part.shape[1]) for part in parts]
    return torch.cat(groups, dim=1).flatten(0, 2)


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
