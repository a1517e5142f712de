"""Mask2Former head: decodes the learned queries once per image, and one query per [SEG].

Source: upstream's mask2former_vid_semanticsam.py.
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
        """Attend from query [B,Q,D] to key and value [B,K,D]: [B,Q,D].

        Boolean ``mask`` [B*heads, Q, K] is True where attention is blocked.
        """
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
    """The decoder layers, and the norm of a query before anything is predicted from it."""

    def __init__(self, config: PixelConfig) -> None:
        super().__init__(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.post_norm = nn.LayerNorm(config.feat_channels)


class MaskPrediction(NamedTuple):
    """Queries and masks after the last decoder layer."""

    query_feat: Tensor  # [B, Q, D], without post_norm
    mask_logits: Tensor  # [B, Q, P/4, P/4]
    mask_logits_all: list[Tensor]  # before layer 0 and after each layer; with last_only the last one


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
        # Of upstream's region and point prompts (LIRA.chat), which no stage offers.
        self.mask_tokens = nn.Embedding(1, dim)
        self.pb_embedding = nn.Embedding(2, dim)
        self.pos_linear = nn.Linear(4 * config.prompt_num_feats, dim)
        self.register_buffer(
            "class_embed", torch.zeros(config.num_classes, prototypes, config.clip_embed_dim), False
        )

    def learned_queries(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return features and positions of the learned queries, each [B,Q,D]."""
        return self.query_feat.weight.expand(batch, -1, -1), self.query_embed.weight.expand(batch, -1, -1)

    def keys(self, memories: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return per level: memory + level embedding [B,HW,D], and its positions [HW,D]."""
        out = []
        for memory, level in zip(memories, self.level_embed.weight, strict=True):
            code = sine_encoding(memory.shape[2], memory.shape[3], self.config.feat_channels // 2)
            out.append((memory.flatten(2).transpose(1, 2) + level, code.flatten(1).T.to(memory)))
        return out

    def mask_embedding(self, query_feat: Tensor) -> Tensor:
        """[B,Q,D] -> [B,Q,D]; a mask logit is the dot product with a pixel's mask feature."""
        return self.mask_embed(self.transformer_decoder.post_norm(query_feat))

    def forward(
        self,
        query_feat: Tensor,
        query_pos: Tensor,
        mask_features: Tensor,
        memories: Sequence[Tensor],
        isolated: bool = False,
        last_only: bool = False,
    ) -> MaskPrediction:
        """Decode queries [B,Q,D], each row of the batch in its own image.

        Args:
            isolated: queries do not attend to each other, as if each were decoded alone ([SEG], upstream).
            last_only: keep the masks of the last layer only.
        """
        keys = self.keys(memories)
        queries = query_feat.shape[1]
        alone = ~torch.eye(queries, dtype=torch.bool, device=query_feat.device) if isolated else None
        logits = torch.einsum("bqc,bchw->bqhw", self.mask_embedding(query_feat), mask_features)
        logits_all = [logits]
        for i, layer in enumerate(self.transformer_decoder.layers):
            level = i % len(memories)
            blocked = self.blocked(logits, memories[level].shape[-2:])
            query_feat = layer(query_feat, query_pos, *keys[level], blocked, alone)
            logits = torch.einsum("bqc,bchw->bqhw", self.mask_embedding(query_feat), mask_features)
            logits_all = [logits] if last_only else [*logits_all, logits]
        return MaskPrediction(query_feat, logits, logits_all)

    def blocked(self, mask_logits: Tensor, size: Sequence[int]) -> Tensor:
        """Return where queries may not attend [B*heads,Q,HW]; one with nothing left may attend anywhere."""
        small = F.interpolate(mask_logits.detach(), tuple(size), mode="bilinear", align_corners=False)
        mask = small.sigmoid().flatten(2) < 0.5
        mask = mask & ~mask.all(-1, keepdim=True)
        return mask.repeat_interleave(self.heads, dim=0)

    def class_logits(self, query_feat: Tensor, mask_logits: Tensor, mask_features: Tensor) -> Tensor:
        """Return [B,Q,classes+1]; the last column, void, is exactly zero: its class embedding is zero."""
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
        """Return [B,Q,1]. Upstream computes and ignores them; the benchmark's reference does the same."""
        return self.iou_embed(self.transformer_decoder.post_norm(query_feat))


def _mlp3(dim: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, out))
