"""SEFE's projector for the graph: cells and object queries attend to the semantic features together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..model.projector import Projector
from .attention import SplitAttention


class SefeStage(nn.Module):
    """features [1,M,C], pixel_features [1,cells,F+2D], queries [1,Q,2D] -> tokens [1,cells,C] and [1,Q,C].

    Cells and queries use the same attention module, in which one row does not depend on another. Joined, they
    need keys and values of the semantic features only once.
    """

    def __init__(self, projector: Projector) -> None:
        super().__init__()
        self.model_feat = projector.model_feat
        self.query_proj, self.model = projector.query_proj, projector.model
        cross = projector.cross_beforellm
        self.norm1, self.norm2 = cross.norm1, cross.norm2
        self.attention = SplitAttention(cross.multihead_attn)

    def forward(self, features: Tensor, pixel_features: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        tokens = torch.cat([self.model_feat(pixel_features), self.model(self.query_proj(queries))], dim=1)
        memory = self.norm2(features)
        tokens = tokens + self.attention(self.norm1(tokens), memory, memory)
        pixel_tokens, query_tokens = tokens.split([pixel_features.shape[1], queries.shape[1]], dim=1)
        return pixel_tokens, query_tokens
