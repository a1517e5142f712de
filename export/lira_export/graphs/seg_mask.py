"""The mask decoder for the graph, for one [SEG]: it projects only what a single query needs.

Upstream decodes a [SEG] with the layers of the learned queries: each projects all 21,504 memory positions to
keys and values. For one query the projections fold into the query:

- score of a position = (Wk_h^T q_h) . (memory + level + position code). Softmax cancels the terms with Wk's
  bias and with the level, which are the same for all positions; the position code splits into y and x.
- value = Wv_h (attention-weighted sum of memory + level) + bv_h, because the weights of a head sum to one.
- self-attention of one query is out_proj(v_proj(x)).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..model.mask_decoder import Attention, DecoderLayer, MaskDecoder
from ..model.pixel_decoder import sine_encoding
from ..model.projector import TextToVision
from .attention import linear
from .masks import allowed_positions
from .pixel_encoder import memory_sizes

BLOCKED = -30000.0
"""Added to the score of a blocked position: its weight underflows to zero, in fp16 too."""


class Level(NamedTuple):
    """What a decoder layer attends to; its constants."""

    memory: Tensor  # [D, h*w]
    embedding: Tensor  # [D], the level's
    code_y: Tensor  # [D/2, h]
    code_x: Tensor  # [D/2, w]


class SingleQueryAttention(nn.Module):
    """Cross-attention of one query x [1,D] with a memory that is not projected."""

    key_weight: Tensor
    value_weight: Tensor
    value_bias: Tensor

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        packed = attention.attn
        heads, dim = packed.num_heads, packed.embed_dim
        q, k, v = packed.in_proj_weight.detach().chunk(3)
        q_bias, _, v_bias = packed.in_proj_bias.detach().chunk(3)
        scale = (dim // heads) ** -0.5
        self.heads = heads
        self.query = linear(q * scale, q_bias * scale)
        self.out = linear(packed.out_proj.weight, packed.out_proj.bias)
        self.register_buffer("key_weight", k.unflatten(0, (heads, -1)))  # [H, d, D]
        values = v.unflatten(0, (heads, -1)).transpose(1, 2)
        self.register_buffer("value_weight", values.contiguous())  # [H, D, d]
        self.register_buffer("value_bias", v_bias.unflatten(0, (heads, 1, -1)))  # [H, 1, d]

    def forward(self, x: Tensor, pos: Tensor, level: Level, blocked: Tensor) -> Tensor:
        """Attend; ``blocked`` [1,h*w] is 0 or BLOCKED. Returns [1,D]."""
        q = self.query(x + pos).view(self.heads, 1, -1)
        folded = (q @ self.key_weight).squeeze(1)  # [H, D]
        of_y, of_x = folded.chunk(2, dim=1)
        code = (of_y @ level.code_y)[:, :, None] + (of_x @ level.code_x)[:, None]  # [H, h, w]
        weights = (folded @ level.memory + code.flatten(1) + blocked).softmax(-1)  # [H, HW]
        # Memory times weights: then the small matrix is transposed.
        mixed = (level.memory @ weights.T).T + level.embedding  # [H, D]
        values = mixed[:, None] @ self.value_weight + self.value_bias  # [H, 1, d]
        return self.out(values.view(1, -1))


class SingleQueryLayer(nn.Module):
    """Post-norm: masked cross-attention, self-attention of a single query, feed-forward."""

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__()
        self.cross_attn = SingleQueryAttention(layer.cross_attn)
        packed = layer.self_attn.attn
        v, v_bias = packed.in_proj_weight.chunk(3)[2], packed.in_proj_bias.chunk(3)[2]
        out = packed.out_proj
        self.self_attn = linear(out.weight @ v, out.weight @ v_bias + out.bias)
        self.ffn, self.norms = layer.ffn, layer.norms

    def forward(self, x: Tensor, pos: Tensor, level: Level, blocked: Tensor) -> Tensor:
        x = self.norms[0](x + self.cross_attn(x, pos, level, blocked))
        x = self.norms[1](x + self.self_attn(x))
        return self.norms[2](self.ffn(x))


class PixelDecoderStage(nn.Module):
    """hidden_states [1,C], mask features and memories of one image -> mask logits [1,P/4,P/4]."""

    constants = ("level", "code_y", "code_x")

    def __init__(self, text2vision: TextToVision, decoder: MaskDecoder) -> None:
        super().__init__()
        self.text2vision = text2vision
        transformer = decoder.transformer_decoder
        self.layers = nn.ModuleList(SingleQueryLayer(x) for x in transformer.layers)
        self.post_norm = transformer.post_norm
        self.mask_embed = decoder.mask_embed
        half = decoder.config.feat_channels // 2
        for i, (h, w) in enumerate(memory_sizes(decoder.config)):
            code = sine_encoding(h, w, half)  # the first half depends on y only, the second on x
            constants = (decoder.level_embed.weight[i], code[:half, :, 0], code[half:, 0])
            for name, value in zip(self.constants, constants, strict=True):
                self.register_buffer(f"{name}_{i}", value.detach().contiguous())

    def forward(
        self,
        hidden_states: Tensor,
        mask_features: Tensor,
        attention_features: Sequence[Tensor],
        memories: Sequence[Tensor],
    ) -> Tensor:
        """Decode; attention_features and memories are [1,D,h,w], lowest resolution first."""
        return self.decode(self.text2vision(hidden_states), mask_features, attention_features, memories)

    def decode(
        self,
        query: Tensor,
        mask_features: Tensor,
        attention_features: Sequence[Tensor],
        memories: Sequence[Tensor],
    ) -> Tensor:
        """Decode a query [1,2D] that is projected already."""
        x, pos = query.chunk(2, dim=-1)
        levels = [
            Level(memory.reshape(x.shape[1], -1), *(getattr(self, f"{name}_{i}") for name in self.constants))
            for i, memory in enumerate(memories)
        ]
        embedding = self.mask_embed(self.post_norm(x))
        for i, layer in enumerate(self.layers):
            level = i % len(levels)
            allowed = allowed_positions(embedding[None], attention_features[level]).squeeze(0)
            x = layer(x, pos, levels[level], torch.where(allowed, 0.0, BLOCKED))
            embedding = self.mask_embed(self.post_norm(x))
        return (embedding @ mask_features.reshape(x.shape[1], -1)).view(1, *mask_features.shape[2:])
