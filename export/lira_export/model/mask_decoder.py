"""Mask2Former head: learned queries once per image, one query per [SEG].

Upstream: mask2former_vid_semanticsam.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PixelConfig
from .pixel_decoder import FeedForward, sine_encoding
from .vit import Layers


class Attention(nn.Module):
    """Residual multi-head attention under mmcv's parameter names (``attn.*``)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_pos: Tensor,
        key_pos: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """Boolean ``mask`` [B*heads, Q, K] is True where attention is blocked."""
        out, _ = self.attn(query + query_pos, key + key_pos, value, attn_mask=mask, need_weights=False)
        return query + out


class DecoderLayer(nn.Module):
    """Post-norm: masked cross-attention, self-attention, feed-forward."""

    def __init__(self, config: PixelConfig) -> None:
        super().__init__()
        dim = config.feat_channels
        self.cross_attn = Attention(dim, config.decoder_heads)
        self.self_attn = Attention(dim, config.decoder_heads)
        self.ffn = FeedForward(dim, config.decoder_ffn)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(3))

    def forward(
        self,
        x: Tensor,
        pos: Tensor,
        memory: Tensor,
        memory_pos: Tensor,
        blocked: Tensor,
        isolated: Tensor | None,
    ) -> Tensor:
        x = self.norms[0](self.cross_attn(x, memory, memory, pos, memory_pos, blocked))
        x = self.norms[1](self.self_attn(x, x, x, pos, pos, isolated))
        return self.norms[2](self.ffn(x))


class Transformer(Layers):
    """The decoder layers, and the norm that every prediction from a query starts with."""

    def __init__(self, config: PixelConfig) -> None:
        super().__init__(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.post_norm = nn.LayerNorm(config.feat_channels)


class MaskPrediction(NamedTuple):
    """What the decoder knows after its last layer."""

    query_feat: Tensor  # [B, Q, D], without post_norm
    mask_logits: Tensor  # [B, Q, P/4, P/4]
    mask_logits_all: list[Tensor]  # before layer 0 and after each layer; the last one alone, if asked so


class MaskDecoder(nn.Module):
    """The panoptic head without its pixel decoder."""

    class_embed: Tensor

    def __init__(self, config: PixelConfig, prototypes: int = 1) -> None:
        super().__init__()
        dim = config.feat_channels
        self.config = config
        self.heads = config.decoder_heads
        self.transformer_decoder = Transformer(config)
        self.query_embed = nn.Embedding(config.num_queries, dim)
        self.query_feat = nn.Embedding(config.num_queries, dim)
        self.level_embed = nn.Embedding(config.num_levels, dim)
        self.mask_embed = _mlp3(dim, dim)
        self.cls_proj = _mlp3(dim, config.clip_embed_dim)
        self.iou_embed = _mlp3(dim, 1)
        self.mask_pooling_proj = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim))
        # Region and point prompts (upstream LIRA.chat).
        self.mask_tokens = nn.Embedding(1, dim)
        self.pb_embedding = nn.Embedding(2, dim)
        self.pos_linear = nn.Linear(4 * config.prompt_num_feats, dim)
        self.register_buffer(
            "class_embed", torch.zeros(config.num_classes, prototypes, config.clip_embed_dim), False
        )

    def learned_queries(self, batch: int) -> tuple[Tensor, Tensor]:
        """query_feat and query_pos, each [B,Q,D]."""
        return self.query_feat.weight.expand(batch, -1, -1), self.query_embed.weight.expand(batch, -1, -1)

    def keys(self, memories: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Per level: memory + level embedding [B,HW,D], and its positions [HW,D]."""
        out = []
        for memory, level in zip(memories, self.level_embed.weight, strict=True):
            code = sine_encoding(memory.shape[2], memory.shape[3], self.config.feat_channels // 2)
            out.append((memory.flatten(2).transpose(1, 2) + level, code.flatten(1).T.to(memory)))
        return out

    def mask_embedding(self, query_feat: Tensor) -> Tensor:
        """[B,Q,D] -> [B,Q,D]; a mask logit is its product with a pixel's mask feature."""
        return self.mask_embed(self.transformer_decoder.post_norm(query_feat))

    def forward(
        self,
        query_feat: Tensor,
        query_pos: Tensor,
        mask_features: Tensor,
        memories: Sequence[Tensor],
        isolated: bool = False,
        regions: Tensor | None = None,
        last_only: bool = False,
    ) -> MaskPrediction:
        """Decode queries [B,Q,D] against one image each.

        Args:
            isolated: queries do not see each other, as if each were decoded alone ([SEG], upstream).
            regions: [B,Q,H,W] masks that replace the predicted attention masks (region prompts).
            last_only: forget the masks of all layers but the last.
        """
        keys = self.keys(memories)
        queries = query_feat.shape[1]
        alone = ~torch.eye(queries, dtype=torch.bool, device=query_feat.device) if isolated else None
        logits = torch.einsum("bqc,bchw->bqhw", self.mask_embedding(query_feat), mask_features)
        logits_all = [logits]
        for i, layer in enumerate(self.transformer_decoder.layers):
            level = i % len(memories)
            blocked = self.blocked(logits, memories[level].shape[-2:], regions)
            query_feat = layer(query_feat, query_pos, *keys[level], blocked, alone)
            logits = torch.einsum("bqc,bchw->bqhw", self.mask_embedding(query_feat), mask_features)
            logits_all = [logits] if last_only else [*logits_all, logits]
        return MaskPrediction(query_feat, logits, logits_all)

    def blocked(self, mask_logits: Tensor, size: Sequence[int], regions: Tensor | None) -> Tensor:
        """Positions each query may not attend to [B*heads,Q,HW]; a query with none left may attend to all."""
        if regions is None:
            small = F.interpolate(mask_logits.detach(), tuple(size), mode="bilinear", align_corners=False)
            mask = small.sigmoid().flatten(2) < 0.5
        else:
            mask = F.interpolate(regions, tuple(size), mode="nearest").flatten(2) == 0
        mask = mask & ~mask.all(-1, keepdim=True)
        return mask.repeat_interleave(self.heads, dim=0)

    def class_logits(self, query_feat: Tensor, mask_logits: Tensor, mask_features: Tensor) -> Tensor:
        """[B,Q,classes+1]; the last column, void, is exactly zero (its class embedding is all zero)."""
        inside = (mask_logits.detach() > 0).to(mask_features.dtype)
        pooled = (
            torch.einsum("bchw,bqhw->bqc", mask_features, inside) / (inside.sum((-1, -2)) + 1e-8)[..., None]
        )
        embedded = self.cls_proj(
            self.mask_pooling_proj(pooled) + self.transformer_decoder.post_norm(query_feat)
        )
        similarity = torch.einsum("bqc,kpc->bqkp", F.normalize(embedded, dim=-1), self.class_embed).amax(-1)
        scale = torch.tensor(self.config.logit_scale_ln, dtype=similarity.dtype).exp()
        return F.pad(similarity * scale, (0, 1))

    def iou_logits(self, query_feat: Tensor) -> Tensor:
        """[B,Q,1]; computed by upstream, used by nothing."""
        return self.iou_embed(self.transformer_decoder.post_norm(query_feat))

    def point_queries(self, points: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
        """Prompt queries for (x, y) pixels [N,2]: query_feat and query_pos, each [N,1,D]."""
        half, eps = 3, 1e-3
        scale = torch.tensor([width, height], dtype=torch.float32)
        boxes = torch.cat([points / scale, torch.full_like(points, 2 * half) / scale], dim=-1)
        # Upstream's inverse sigmoid clamps to [eps, 1]; the sigmoid brings the clamped ratio back.
        boxes = boxes.clamp(0, 1)
        low, high = boxes.clamp(min=eps), (1 - boxes).clamp(min=eps)
        pos = self.pos_linear(box_encoding(low / (low + high), self.config.prompt_num_feats))
        feat = self.pb_embedding.weight[0] + self.mask_tokens.weight[0]
        return feat.expand(points.shape[0], 1, -1), pos[:, None]


def box_encoding(boxes: Tensor, num_feats: int) -> Tensor:
    """Sine code of (cx, cy, w, h) [N,4] -> [N,4*num_feats], ordered y, x, w, h (as in mmdet)."""
    dim = torch.arange(num_feats, dtype=torch.float32)
    dim = 10000 ** (2 * torch.div(dim, 2, rounding_mode="floor") / num_feats)
    angles = boxes[:, [1, 0, 2, 3], None] * 2 * torch.pi / dim
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(1)


def _mlp3(dim: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out))
