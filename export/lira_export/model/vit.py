"""Tile encoder: InternViT, pixel shuffle and mlp1.

Sources: InternVL2's modeling_intern_vit.py, upstream's LIRA.extract_feature.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import VisionConfig


class Embeddings(nn.Module):
    """Patches, class token and learned positions: pixel_values [T,3,S,S] -> [T,1+P,D]."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        patches = (config.image_size // config.patch_size) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        self.position_embedding = nn.Parameter(torch.zeros(1, patches + 1, config.hidden_size))

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        cls = self.class_embedding.expand(patches.shape[0], -1, -1)
        return torch.cat([cls, patches], dim=1) + self.position_embedding


class Attention(nn.Module):
    """Self-attention with one qkv projection, rows ordered q, k, v and then by head."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1)
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Layer(nn.Module):
    """Pre-norm block with layer scales."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.ls1 = nn.Parameter(torch.ones(config.hidden_size))
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config.hidden_size, config.intermediate_size)
        self.ls2 = nn.Parameter(torch.ones(config.hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x)) * self.ls1
        return x + self.mlp(self.norm2(x)) * self.ls2


class Layers(nn.Module):
    """A list of layers under ``layers``, which gives upstream's parameter names: ``encoder.layers.0``."""

    layers: Any  # nn.ModuleList; type checkers take its items for plain modules

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


class InternViT(nn.Module):
    """pixel_values [T,3,S,S] -> last hidden state [T,1+P,D], no final norm; row 0 is the class token."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Layers(Layer(config) for _ in range(config.num_layers))

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = self.embeddings(pixel_values)
        for layer in self.encoder.layers:
            x = layer(x)
        return x


def pixel_shuffle(x: Tensor, ratio: int) -> Tensor:
    """Fold r x r neighbours into channels (row, column, channel): [T,H,W,D] -> [T,H/r,W/r,r*r*D]."""
    t, h, w, d = x.shape
    x = x.reshape(t, h // ratio, ratio, w // ratio, ratio, d).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(t, h // ratio, w // ratio, ratio * ratio * d)


class SemanticEncoder(nn.Module):
    """pixel_values [T,3,S,S] -> features [T,N,C] (drop the class token, pixel shuffle, mlp1)."""

    def __init__(self, config: VisionConfig, llm_hidden_size: int) -> None:
        super().__init__()
        self.side = config.image_size // config.patch_size
        self.shuffle = config.shuffle
        width = config.hidden_size * config.shuffle**2
        self.vit = InternViT(config)
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, llm_hidden_size),
            nn.GELU(),
            nn.Linear(llm_hidden_size, llm_hidden_size),
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.vit(pixel_values)[:, 1:].unflatten(1, (self.side, self.side))
        return self.mlp1(pixel_shuffle(patches, self.shuffle).flatten(1, 2))
