"""The language model of all families: a KV cache that grows, eager attention, LoRA merged.

Source: InternVL's modeling_internlm2.py. Qwen2 adds biases to q, k and v.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import LlmConfig

Cache = list[tuple[Tensor, Tensor]]  # per layer: keys and values [B, KV, L, D]


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in fp32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)


class Rotary:
    """Rotate-half position embedding with upstream's dynamic NTK scaling.

    Beyond the trained length the base grows with the longest sequence so far, and never shrinks. Keys in the
    KV cache keep the rotation that they were stored with.
    """

    def __init__(self, config: LlmConfig) -> None:
        self.config = config
        self.longest = config.max_position_embeddings

    def tables(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin [..., S, D] for positions [..., S]."""
        c, dim = self.config, self.config.head_dim
        self.longest = max(self.longest, int(positions.max()) + 1)
        base, s = c.rope_theta, c.rope_scaling_factor
        if s is not None:  # the factor is 1 up to the trained length
            base *= (s * self.longest / c.max_position_embeddings - (s - 1)) ** (dim / (dim - 2))
        inverse = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
        angles = positions[..., None].float() * inverse
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, heads, S, D] by cos and sin [..., S, D]."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


class Layer(nn.Module):
    """Pre-norm attention with grouped KV heads, then SwiGLU."""

    def __init__(self, config: LlmConfig) -> None:
        super().__init__()
        c, kv = config, config.num_kv_heads * config.head_dim
        self.heads, self.kv_heads = c.num_heads, c.num_kv_heads
        self.attention_norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.q = nn.Linear(c.hidden_size, c.hidden_size, bias=c.qkv_bias)
        self.k = nn.Linear(c.hidden_size, kv, bias=c.qkv_bias)
        self.v = nn.Linear(c.hidden_size, kv, bias=c.qkv_bias)
        self.o = nn.Linear(c.hidden_size, c.hidden_size, bias=False)
        self.ffn_norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.gate = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        normed = self.attention_norm(x)
        q = rotate(self.q(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2), *rope)
        k = rotate(self.k(normed).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2), *rope)
        v = self.v(normed).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        x = x + self.o(out.transpose(1, 2).flatten(2))
        normed = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed)), (k, v)


class LlmOutput(NamedTuple):
    """logits [B,S,V], hidden_states [B,S,C] after the final norm, KV cache, input of every layer."""

    logits: Tensor
    hidden_states: Tensor
    cache: Cache
    all_hidden_states: list[Tensor]


class LanguageModel(nn.Module):
    """inputs_embeds [B,S,C] -> :class:`LlmOutput`."""

    def __init__(self, config: LlmConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.rotary = Rotary(config)

    def forward(
        self,
        inputs_embeds: Tensor,
        cache: Cache | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> LlmOutput:
        """Run causally on what ``cache`` holds and the inputs.

        Boolean ``mask`` (True: attend) and ``positions`` [S] or [B,S] replace the causal ones.
        """
        past = cache[0][0].shape[2] if cache else 0
        length = inputs_embeds.shape[1]
        if positions is None:
            positions = torch.arange(past, past + length)
        if mask is None:
            mask = torch.arange(past + length) <= torch.arange(past, past + length)[:, None]
        rope = self.rotary.tables(positions)
        if positions.dim() == 2:
            rope = (rope[0][:, None], rope[1][:, None])
        x, grown, hidden = inputs_embeds, [], [inputs_embeds]
        for i, layer in enumerate(self.layers):
            x, layer_cache = layer(x, rope, mask, cache[i] if cache else None)
            grown.append(layer_cache)
            hidden.append(x)
        hidden[-1] = self.norm(x)
        return LlmOutput(self.lm_head(hidden[-1]), hidden[-1], grown, hidden)
