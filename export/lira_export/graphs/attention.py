"""Multi-head attention with a linear layer for each projection: every weight becomes a named initializer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SplitAttention(nn.Module):
    """nn.MultiheadAttention (batch first) without the packed projection. It shares the weights' memory."""

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads = packed.num_heads
        weights, biases = packed.in_proj_weight.chunk(3), packed.in_proj_bias.chunk(3)
        self.q, self.k, self.v = (linear(w, b) for w, b in zip(weights, biases, strict=True))
        self.out = linear(packed.out_proj.weight, packed.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Attend from query [B,Q,D] to key and value [B,K,D], where boolean ``allowed`` [B,Q,K] is True."""
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, x in ((self.q, query), (self.k, key), (self.v, value))
        )
        mask = None if allowed is None else allowed[:, None]
        return self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a linear layer that uses these tensors."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer
