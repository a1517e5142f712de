"""Names, shapes and random values of the tensors of a checkpoint's files."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import torch
from torch import Tensor

from ..config import LiraConfig
from ..families import FAMILIES, LLM_PREFIX, family_of
from ..model.lira import Lira
from ..upstream_names import vision_source
from .streams import Shapes

PIECE = 1 << 24  # values in memory at a time
_VARIED = 0.02
# Layers that add to a residual stream get small weights, so that the stream does not grow with the depth.
_RESIDUAL = (
    *("attn.proj", "mlp.fc2"),
    *(x.name for f in FAMILIES.values() for x in f.linears if x.parts in (("o",), ("down",))),
)
_TABLES = (
    *("query_feat.weight", "query_embed.weight"),
    *(f"{family.embeddings}.weight" for family in FAMILIES.values()),
)


def upstream_shapes(config: LiraConfig, base_vocab: int, lora_rank: int) -> dict[str, Shapes]:
    """Return role ("lira", "base", "head", "clip") -> tensor -> shape, as a Checkpoint expects them.

    ``base_vocab``: rows of the base model's own tables, which LIRA's replace.
    """
    with torch.device("meta"):
        ours = {name: tuple(p.shape) for name, p in Lira(config).named_parameters()}
    files: dict[str, dict[str, tuple[int, ...]]] = {"lira": {}, "base": {}, "head": {}, "clip": {}}
    for name, shape in ours.items():
        if not name.startswith("llm."):
            role, upstream = vision_source(name)
            files[role][upstream] = shape
    family, width = family_of(config.llm.family), config.llm.hidden_size
    base, lira = files["base"], files["lira"]

    def adapter(stem: str, shape: tuple[int, int]) -> None:
        lira[f"{LLM_PREFIX}{stem}.lora_A.default.weight"] = (lora_rank, shape[1])
        lira[f"{LLM_PREFIX}{stem}.lora_B.default.weight"] = (shape[0], lora_rank)

    base[f"language_model.{family.embeddings}.weight"] = (base_vocab, width)
    for i in range(config.llm.num_layers):
        stem = f"model.layers.{i}."
        for linear in family.linears:
            parts = [ours[f"llm.layers.{i}.{part}.weight"] for part in linear.parts]
            shape = (sum(part[0] for part in parts), parts[0][1])
            base[f"language_model.{stem}{linear.name}.weight"] = shape
            if linear.bias:
                base[f"language_model.{stem}{linear.name}.bias"] = shape[:1]
            adapter(stem + linear.name, shape)
        for norm in family.norms.values():
            base[f"language_model.{stem}{norm}.weight"] = (width,)
    base["language_model.model.norm.weight"] = (width,)
    table = (config.llm.vocab_size, width)
    lira[f"{LLM_PREFIX}{family.embeddings}.weight"] = table
    if not config.llm.tie_word_embeddings:
        base[f"language_model.{family.head}.weight"] = (base_vocab, width)
        adapted = ".base_layer" if family.head_is_adapted else ""
        lira[f"{LLM_PREFIX}{family.head}{adapted}.weight"] = table
        if family.head_is_adapted:
            adapter(family.head, table)
    return dict(files)


def random_pieces(
    name: str, shape: tuple[int, ...], seed: int, layers: int, varied: bool = False
) -> Iterator[Tensor]:
    """Yield one tensor's values, fp32, in pieces. They depend on nothing but the arguments.

    Activations keep a size of about one: linear layers draw from N(0, 1 / fan in). ``varied``: no two norms
    and biases are alike, as in trained models; an export keeps equal tensors once.
    """
    generator = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
    size = torch.Size(shape).numel()
    mean, std = _distribution(name, shape, layers)
    if varied and len(shape) == 1:
        std = max(std, _VARIED)
    for start in range(0, size, PIECE):
        piece = torch.empty(min(PIECE, size - start))
        yield piece.normal_(mean, std, generator=generator) if std else piece.fill_(mean)


def _distribution(name: str, shape: tuple[int, ...], layers: int) -> tuple[float, float]:
    """Return mean and standard deviation."""
    last = name.rpartition(".")[2]
    if last in ("gamma", "ls1", "ls2"):
        return 0.1, 0.0
    if len(shape) == 1:
        if last == "weight":
            return 1.0, 0.0
        return 0.0, 0.1 if "_proj.bias" in name and "self_attn" in name else 0.0
    if "embedding" in last:
        return 0.0, 0.02
    if name.endswith(_TABLES):
        return 0.0, 1.0
    std = (torch.Size(shape).numel() / shape[0]) ** -0.5
    if "lora_B" in name:
        std *= 0.1
    if any(part in name for part in _RESIDUAL):
        std *= (2 * layers) ** -0.5
    return 0.0, std
