"""Outliers of trained models, planted in a random checkpoint: random weights alone have none.

Channels: a few of the residual stream are 20 to 100 times the others, with one sign in every row, in the
tile encoder and in the language model (Dettmers et al., LLM.int8(); Xiao et al., SmoothQuant). Matmuls that
read them have small weights there, so that what they hold matters no more than other channels: a scale that
suits them rounds the others away.

Massive activations: at the first token, two channels are thousands of times the median; an early layer's MLP
makes them and they stay to the end (Sun et al., Massive Activations in Large Language Models). The first
token is the class token of a tile, and the first of the prompt. As in trained models, one neuron of the MLP
makes them, whose own value is massive too. The token does the same where it comes again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..config import LiraConfig
from ..families import LLM_PREFIX, family_of
from ..upstream_names import vision_source

SMALLEST, LARGEST = 20.0, 100.0  # an outlier channel in units of the others
CHANNELS_PER_OUTLIER = 256
SPREAD = 0.1
"""How far an outlier varies from row to row, in units of itself."""
MASSIVE = 3000.0
MAKER = 1
"""The layer whose MLP makes the massive activations; the last one of a shorter model."""
NEURON = 400.0
"""What its neuron gives at the first token."""
QUIET = 0.01
"""The channel that marks the first token, in all other rows. Not 0: no scale comes from rows of zeros."""


@dataclass(frozen=True)
class Planting:
    """What becomes of a tensor's random values: they are multiplied, then added to, then some are replaced.

    Attributes:
        factor: of all values. rows, columns: factors by index of the first and the last axis.
        added: by index of the last axis.
        entries: values by index, of the tensor as a matrix whose rows are its last axis.
    """

    factor: float = 1.0
    rows: Mapping[int, float] = field(default_factory=dict)
    columns: Mapping[int, float] = field(default_factory=dict)
    added: Mapping[int, float] = field(default_factory=dict)
    entries: Mapping[tuple[int, int], float] = field(default_factory=dict)

    def plant(self, piece: Tensor, start: int, shape: tuple[int, ...]) -> None:
        """Change ``piece``, the values from index ``start`` of a tensor of this shape, in place."""
        row, width, end = math.prod(shape[1:]), shape[-1], start + len(piece)
        piece *= self.factor
        for i, factor in self.rows.items():
            piece[max(i * row - start, 0) : max((i + 1) * row - start, 0)] *= factor
        for i, factor in self.columns.items():
            piece[(i - start) % width :: width] *= factor
        for i, value in self.added.items():
            piece[(i - start) % width :: width] += value
        for (i, j), value in self.entries.items():
            if start <= i * width + j < end:
                piece[i * width + j - start] = value


@dataclass(frozen=True)
class Stream:
    """Where the outliers of a residual stream are.

    Attributes:
        width: channels. outliers: channel -> its mean, in units of the others.
        mark: channel that is large in the first token, and small in all others. massive: channels of the
            massive activations.
    """

    width: int
    outliers: Mapping[int, float]
    mark: int
    massive: tuple[int, int]

    @classmethod
    def of(cls, width: int, seed: int) -> Stream:
        count = max(2, width // CHANNELS_PER_OUTLIER)
        generator = torch.Generator().manual_seed(seed)
        mark, first, second, *channels = torch.randperm(width, generator=generator)[: count + 3].tolist()
        sizes = torch.linspace(math.log(SMALLEST), math.log(LARGEST), count).exp()
        sizes[::2] *= -1  # both signs, or a layer norm's mean would move every other channel
        return cls(width, dict(zip(channels, sizes.tolist(), strict=True)), mark, (first, second))

    @property
    def growth(self) -> float:
        """By what a row's root mean square grows. As the norms' weight, it leaves other channels at one."""
        return math.sqrt(1 + sum(mean**2 for mean in self.outliers.values()) / self.width)

    @property
    def normed_mark(self) -> float:
        """The mark of a first token behind a norm, if its outlier channels have their means."""
        return LARGEST * self.growth / math.sqrt(self.growth**2 + LARGEST**2 / self.width)

    @property
    def written(self) -> dict[int, float]:
        """Factors of what adds to the stream."""
        return {i: SPREAD * abs(mean) for i, mean in self.outliers.items()} | {self.mark: QUIET}

    @property
    def rows(self) -> Planting:
        """What becomes of a table of rows of the stream."""
        return Planting(columns=self.written, added=self.outliers)

    def read(self, copies: int = 1) -> dict[int, float]:
        """Return factors of the columns that read a normed row of the stream, or ``copies`` of them."""
        factors = {channel: 1 / abs(mean) for channel, mean in self.outliers.items()}
        factors[self.mark] = 1 / LARGEST
        factors |= dict.fromkeys(self.massive, 1 / self.growth)
        return {i * self.width + j: factor for i in range(copies) for j, factor in factors.items()}

    def first_row(self, row: int) -> dict[tuple[int, int], float]:
        """Return the entries of the first token's embedding."""
        return {(row, i): value for i, value in {**self.outliers, self.mark: LARGEST}.items()}


def plan_outliers(config: LiraConfig, first_token: int, seed: int) -> dict[str, Planting]:
    """Return upstream's name of a tensor -> what is planted in it. ``first_token``: of the prompt."""
    llm = Stream.of(config.llm.hidden_size, seed)
    planted = _tile_encoder(config, Stream.of(config.vision.hidden_size, seed + 1), llm)
    tensors = planted | _visual_rows(config, llm)
    found = {vision_source(name)[1]: planting for name, planting in tensors.items()}
    return found | _language_model(config, llm, first_token)


def _tile_encoder(config: LiraConfig, vit: Stream, llm: Stream) -> dict[str, Planting]:
    prefix, layers = "semantic_encoder.vit.", config.vision.num_layers
    found = {
        prefix + "embeddings.class_embedding": Planting(columns=vit.written, entries=vit.first_row(0)),
        prefix + "embeddings.position_embedding": Planting(columns=vit.written),
        prefix + "embeddings.patch_embedding.weight": Planting(rows=vit.written),
        prefix + "embeddings.patch_embedding.bias": Planting(added=vit.outliers),
        "semantic_encoder.mlp1.0.weight": Planting(vit.growth),
        "semantic_encoder.mlp1.1.weight": Planting(columns=vit.read(config.vision.shuffle**2)),
        "semantic_encoder.mlp1.3.weight": Planting(rows=llm.written),
        "semantic_encoder.mlp1.3.bias": Planting(added=llm.outliers),
    }
    for i in range(layers):
        layer, maker = f"{prefix}encoder.layers.{i}.", i == min(MAKER, layers - 1)
        up = {(0, vit.mark): NEURON / vit.normed_mark} if maker else {}
        down = {(channel, 0): MASSIVE / NEURON for channel in vit.massive} if maker else {}
        scale = {(0, channel): 1.0 for channel in vit.massive} if maker else {}
        found |= {
            layer + "norm1.weight": Planting(vit.growth),
            layer + "attn.qkv.weight": Planting(columns=vit.read()),
            layer + "attn.proj.weight": Planting(rows=vit.written),
            layer + "norm2.weight": Planting(vit.growth),
            layer + "mlp.fc1.weight": Planting(columns=vit.read(), entries=up),
            layer + "mlp.fc2.weight": Planting(rows=vit.written, entries=down),
            layer + "ls2": Planting(entries=scale),
        }
    return found


def _visual_rows(config: LiraConfig, llm: Stream) -> dict[str, Planting]:
    """Return what makes rows of the language model out of features, and a mask's query out of its rows."""
    last, cross = 2 * (config.projector.depth - 1), "projector.cross_beforellm."
    hidden = llm.written if config.llm.tie_word_embeddings else llm.read()
    return {
        f"projector.model.{last}.weight": Planting(rows=llm.written),
        f"projector.model.{last}.bias": Planting(added=llm.outliers),
        f"projector.model_feat.{last}.weight": Planting(rows=llm.written),
        f"projector.model_feat.{last}.bias": Planting(added=llm.outliers),
        cross + "norm1.weight": Planting(llm.growth),
        cross + "norm2.weight": Planting(llm.growth),
        cross + "multihead_attn.in_proj_weight": Planting(columns=llm.read()),
        cross + "multihead_attn.out_proj.weight": Planting(rows=llm.written),
        "projector.seperate_embed.weight": llm.rows,
        "projector.seperate_embed_internvl.weight": llm.rows,
        "text2vision.model.0.weight": Planting(columns=hidden),
    }


def _language_model(config: LiraConfig, llm: Stream, first_token: int) -> dict[str, Planting]:
    family, layers = family_of(config.llm.family), config.llm.num_layers
    table = replace(llm.rows, entries=llm.first_row(first_token))
    found = {f"{LLM_PREFIX}{family.embeddings}.weight": table}

    def linear(stem: str, planting: Planting) -> None:
        found[f"language_model.{stem}.weight"] = planting
        adapt(stem, planting)

    def adapt(stem: str, planting: Planting) -> None:
        found[f"{LLM_PREFIX}{stem}.lora_A.default.weight"] = Planting(columns=planting.columns)
        found[f"{LLM_PREFIX}{stem}.lora_B.default.weight"] = Planting(rows=planting.rows)

    for i in range(layers):
        stem, maker = f"model.layers.{i}.", i == min(MAKER, layers - 1)
        spike = {(0, llm.mark): math.sqrt(NEURON) / llm.normed_mark} if maker else {}
        massive = {(channel, 0): MASSIVE / NEURON for channel in llm.massive} if maker else {}
        for one in family.linears:
            if one.parts in (("o",), ("down",)):
                entries = massive if one.parts == ("down",) else {}
                linear(stem + one.name, Planting(rows=llm.written, entries=entries))
            else:
                entries = spike if one.parts in (("gate",), ("up",)) else {}
                linear(stem + one.name, Planting(columns=llm.read(), entries=entries))
        for norm in family.norms.values():
            found[f"language_model.{stem}{norm}.weight"] = Planting(llm.growth)
    norm, head = "language_model.model.norm.weight", Planting(columns=llm.read())
    if config.llm.tie_word_embeddings:  # the table's outlier columns read what the norm makes small
        rows = {i: factor / llm.written.get(i, 1.0) for i, factor in llm.read().items()}
        return found | {norm: Planting(llm.growth, rows)}
    if not family.head_is_adapted:
        return found | {norm: Planting(llm.growth), f"{LLM_PREFIX}{family.head}.weight": head}
    adapt(family.head, head)
    return found | {norm: Planting(llm.growth), f"{LLM_PREFIX}{family.head}.base_layer.weight": head}
