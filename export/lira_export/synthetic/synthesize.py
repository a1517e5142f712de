"""Write a random checkpoint in upstream's layout, one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from lira_engine.system.atomic import atomic_directory
from lira_engine.system.disk import check_disk

from ..config import LIRA_TOKENS, LiraConfig
from ..families import family_of
from ..prompts import prompts_of
from .outliers import plan_outliers
from .presets import PROTOTYPES, Preset, preset
from .streams import write_pth, write_safetensors
from .weights import random_pieces, upstream_shapes

Progress = Callable[[str, int, int], None]
"""Called with the name of a tensor, bytes written so far, bytes in all."""

DTYPE = torch.bfloat16  # as the published files are
SHARD_BYTES = 2 << 30
NOTE = "SYNTHETIC.txt"
WARNING = "SYNTHETIC: the weights are random, answers are meaningless. For measuring speed and memory only."
WITH_OUTLIERS = "Outlier channels and massive activations are planted: for testing quantized engines too."


def synthesize(
    size: str | Preset,
    folder: Path,
    *,
    seed: int = 0,
    outliers: bool = False,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    progress: Progress = lambda file, written, total: None,
) -> Path:
    """Write the five files of a random LIRA to ``folder``, whole or not at all.

    Args:
        size: the name of a size (:func:`~lira_export.synthetic.sizes.size_names`), or a preset.
        seed: the same seed gives the same bytes.
        outliers: plant what quantizing meets in trained weights (:mod:`~lira_export.synthetic.outliers`).

    Raises:
        LiraError: an unknown size, a folder that exists, too little disk space.
    """
    made = preset(size) if isinstance(size, str) else size
    config, tokenizer = made.config, made.tokenizer()
    if made.own_config is None:  # upstream resizes the tables to the tokenizer's length
        config = _with_vocabulary(config, tokenizer.get_vocab_size())
    base_vocab = made.base_config["llm_config"]["vocab_size"]
    files = upstream_shapes(config, base_vocab, made.lora_rank)
    total = DTYPE.itemsize * sum(torch.Size(s).numel() for shapes in files.values() for s in shapes.values())
    check_disk(folder, int(1.01 * total) + (32 << 20), "the checkpoint")
    written, layers = 0, config.llm.num_layers
    planted = plan_outliers(config, _first_token(config, tokenizer), seed) if outliers else {}

    def pieces(name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        nonlocal written
        start = 0
        for piece in random_pieces(name, shape, seed, layers, varied=outliers):
            progress(name, written, total)
            if name in planted:
                planted[name].plant(piece, start, shape)
            yield piece
            start += piece.numel()
            written += piece.numel() * DTYPE.itemsize

    with atomic_directory(folder, overwrite=overwrite, marker=NOTE) as out:
        note = f"{WARNING}\n{WITH_OUTLIERS}\n" if outliers else f"{WARNING}\n"
        (out / NOTE).write_text(note, encoding="utf-8")
        base = out / made.base
        base.mkdir()
        _write_json(base / "config.json", made.base_config)
        tokenizer.save(str(base / "tokenizer.json"))
        write_safetensors(base, files["base"], DTYPE, pieces, shard_bytes)
        write_pth(out / f"{made.name}.pth", files["lira"], DTYPE, pieces)
        write_pth(out / "omg_seg_convl.pth", files["head"], DTYPE, pieces, wrapper="state_dict")
        write_pth(out / "open_clip_pytorch_model.bin", files["clip"], DTYPE, pieces)
        classes = (config.pixel.num_classes, PROTOTYPES, config.pixel.clip_embed_dim)
        (embedding,) = random_pieces("class_embed.", classes, seed, layers)
        embedding = torch.nn.functional.normalize(embedding.view(classes), dim=-1)
        torch.save(embedding, out / "convnext_large_d_320_CocoPanopticOVDataset.pth")
        if made.own_config is not None:
            _write_json(out / "config.json", made.own_config)
    return folder


def _first_token(config: LiraConfig, tokenizer: Tokenizer) -> int:
    """Return the token that begins each prompt."""
    prompts = prompts_of(config)
    if prompts.add_bos:
        return family_of(config.llm.family).bos_token_id
    return int(tokenizer.encode(prompts.system, add_special_tokens=False).ids[0])


def _with_vocabulary(config: LiraConfig, tokens: int) -> LiraConfig:
    return replace(config, llm=replace(config.llm, vocab_size=tokens + len(LIRA_TOKENS)))


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
