"""SEFE's projector and the text-to-vision projection. Source: upstream's modules/projector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PixelConfig, ProjectorConfig


def mlp(dim: int, out: int, depth: int) -> nn.Sequential:
    """Return ``depth`` linear layers with exact GELU between them."""
    layers: list[nn.Module] = [nn.Linear(dim, out)]
    for _ in range(1, depth):
        layers += [nn.GELU(), nn.Linear(out, out)]
    return nn.Sequential(*layers)


class CrossAttention(nn.Module):
    """x + MHA(norm1(x), norm2(memory)); no positions, no feed-forward, no output norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, memory: Tensor, memory_padding: Tensor | None = None) -> Tensor:
        normed = self.norm2(memory)
        out, _ = self.multihead_attn(
            self.norm1(x), normed, normed, key_padding_mask=memory_padding, need_weights=False
        )
        return x + out


class Projector(nn.Module):
    """Fuse cells and object queries with the semantic features (SEFE)."""

    def __init__(self, pixel: PixelConfig, config: ProjectorConfig, llm_hidden_size: int) -> None:
        super().__init__()
        query, cell, dim = 2 * pixel.feat_channels, pixel.shuffled_channels, llm_hidden_size
        self.query_proj = nn.Linear(query, cell)
        self.model = mlp(cell, dim, config.depth)
        self.model_feat = mlp(cell + query, dim, config.depth)
        self.cross_beforellm = CrossAttention(dim, config.cross_heads)
        self.seperate_embed = nn.Embedding(1, dim)
        self.seperate_embed_internvl = nn.Embedding(1, dim)

    def project_queries(self, queries: Tensor) -> Tensor:
        """[B,Q,2D] -> [B,Q,C], before the cross-attention."""
        return self.model(self.query_proj(queries))

    def forward(self, features: Tensor, pixel_features: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        """features [B,M,C], pixel_features [B,cells,F+2D], queries [B,Q,2D] -> [B,cells,C], [B,Q,C]."""
        pixel_tokens = self.cross_beforellm(self.model_feat(pixel_features), features)
        return pixel_tokens, self.cross_beforellm(self.project_queries(queries), features)

    def prefix(self, features: Tensor, pixel_tokens: Tensor, query_tokens: Tensor, valid: Tensor) -> Tensor:
        """Return the visual prefix [L,C] of an image: tiles, separator, cells, separator, valid queries."""
        first, second = self.seperate_embed_internvl.weight, self.seperate_embed.weight
        return torch.cat([features, first, pixel_tokens, second, query_tokens[valid]])


class TextToVision(nn.Module):
    """hidden_states [N,C] -> [SEG] queries [N,2D]: query feature, then query position."""

    def __init__(self, llm_hidden_size: int, pixel: PixelConfig, config: ProjectorConfig) -> None:
        super().__init__()
        self.model = mlp(llm_hidden_size, 2 * pixel.feat_channels, config.text2vision_depth)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.model(hidden_states)


def cell_queries(
    class_logits: Tensor,
    mask_logits: Tensor,
    queries: Tensor,
    image_size: int,
    grid: int,
    at_once: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find which query owns which cell (upstream's panoptic_postprocess).

    Args:
        class_logits: [B,Q,classes+1]. mask_logits: [B,Q,P/4,P/4]. queries: [B,Q,2D].
        at_once: so many queries' masks are in memory at the size of the image; None for all, as upstream.

    Returns:
        pixel queries [B,cells,2D], valid [B,Q] bool (owns at least one cell), grid probabilities [B,Q,g,g].
    """
    score = class_logits.softmax(-1)[..., :-1].amax(-1)

    def on_grid(logits: Tensor, score: Tensor) -> Tensor:
        full = F.interpolate(logits, size=(image_size, image_size), mode="bilinear", align_corners=False)
        weighted = (score * 0.5 + 0.5)[..., None, None] * full.sigmoid()
        return F.interpolate(weighted, size=(grid, grid), mode="bilinear", align_corners=False)

    some = at_once or mask_logits.shape[1]
    parts = zip(mask_logits.split(some, dim=1), score.split(some, dim=1), strict=True)
    probability = torch.cat([on_grid(*part) for part in parts], dim=1)
    flat = probability.flatten(2)  # [B, Q, cells]
    pixel_queries = flat.softmax(1).transpose(1, 2) @ queries
    owner = flat.argmax(1)  # [B, cells]
    valid = (owner[:, None] == torch.arange(flat.shape[1], device=flat.device)[:, None]).any(-1)
    return pixel_queries, valid, probability
