"""Multi-scale deformable pixel decoder. Source: mmdet's MSDeformAttnPixelDecoder."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PixelConfig
from .vit import Layers


def sine_encoding(height: int, width: int, num_feats: int) -> Tensor:
    """Return the 2D sine position encoding [2*num_feats, H, W], normalised to 2 pi, y channels first."""
    scale, eps, temperature = 2 * math.pi, 1e-6, 10000
    y = torch.arange(1, height + 1, dtype=torch.float32) / (height + eps) * scale
    x = torch.arange(1, width + 1, dtype=torch.float32) / (width + eps) * scale
    dim = torch.arange(num_feats, dtype=torch.float32)
    dim = temperature ** (2 * torch.div(dim, 2, rounding_mode="floor") / num_feats)

    def interleave(position: Tensor) -> Tensor:
        angles = position[:, None] / dim
        return torch.stack([angles[:, 0::2].sin(), angles[:, 1::2].cos()], dim=2).flatten(1)

    y_code = interleave(y)[:, None].expand(height, width, num_feats)
    x_code = interleave(x)[None].expand(height, width, num_feats)
    return torch.cat([y_code, x_code], dim=2).permute(2, 0, 1)


def deformable_sampling(
    value: Tensor, locations: Tensor, weights: Tensor, shapes: Sequence[tuple[int, int]]
) -> Tensor:
    """Sample several feature levels bilinearly, weight and sum the samples (Deformable DETR).

    Args:
        value: [B, sum(H*W), heads, d], levels concatenated.
        locations: [B, Lq, heads, levels, points, 2], (x, y) in [0, 1] of each level.
        weights: [B, Lq, heads, levels, points]; they sum to one over levels and points.
        shapes: (H, W) of each level.

    Returns:
        [B, Lq, heads * d]; samples outside a level are zero.
    """
    b, queries, heads, levels, points, _ = locations.shape
    grids = 2 * locations - 1
    sampled = []
    parts = value.split([h * w for h, w in shapes], dim=1)
    for level, (part, (h, w)) in enumerate(zip(parts, shapes, strict=True)):
        feature = part.permute(0, 2, 3, 1).reshape(b * heads, -1, h, w)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(
            F.grid_sample(feature, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        )
    stacked = torch.stack(sampled, dim=-2).flatten(-2)  # [B*heads, d, Lq, levels*points]
    mix = weights.transpose(1, 2).reshape(b * heads, 1, queries, levels * points)
    return (stacked * mix).sum(-1).view(b, -1, queries).transpose(1, 2)


class DeformableAttention(nn.Module):
    """Self-attention over the concatenated levels. Positions are added to the query, not to the value."""

    def __init__(self, config: PixelConfig) -> None:
        super().__init__()
        dim, samples = config.feat_channels, config.num_heads * config.num_levels * config.num_points
        self.heads, self.levels, self.points = config.num_heads, config.num_levels, config.num_points
        self.sampling_offsets = nn.Linear(dim, samples * 2)
        self.attention_weights = nn.Linear(dim, samples)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, pos: Tensor, reference: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """x, pos [B,L,D]; reference [L,2] pixel centres in [0,1] -> x + attention [B,L,D]."""
        query = x + pos
        head_shape = (self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*head_shape, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.heads, -1)).softmax(-1)
        sizes = torch.tensor([[w, h] for h, w in shapes], dtype=x.dtype, device=x.device)
        locations = reference[:, None, None, None] + offsets / sizes[:, None]
        value = self.value_proj(x).unflatten(-1, (self.heads, -1))
        return x + self.output_proj(
            deformable_sampling(value, locations, weights.unflatten(-1, head_shape[1:]), shapes)
        )


class FeedForward(nn.Module):
    """Residual linear, ReLU, linear, under mmcv's parameter names."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Sequential(nn.Linear(dim, hidden), nn.ReLU()), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class EncoderLayer(nn.Module):
    """Post-norm: deformable attention, norm, feed-forward, norm."""

    def __init__(self, config: PixelConfig) -> None:
        super().__init__()
        dim = config.feat_channels
        self.self_attn = DeformableAttention(config)
        self.ffn = FeedForward(dim, config.encoder_ffn)
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])

    def forward(self, x: Tensor, pos: Tensor, reference: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        x = self.norms[0](self.self_attn(x, pos, reference, shapes))
        return self.norms[1](self.ffn(x))


class ConvNorm(nn.Module):
    """Convolution and GroupNorm, with ReLU where asked."""

    def __init__(
        self, dim_in: int, dim: int, kernel: int, groups: int, bias: bool, relu: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim, kernel, padding=kernel // 2, bias=bias)
        self.gn = nn.GroupNorm(groups, dim)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.gn(self.conv(x))
        return F.relu(x) if self.relu else x


class PixelDecoder(nn.Module):
    """res2..res5 -> mask_features [B,D,P/4,P/4] and memories at strides 32, 16, 8, in this order."""

    def __init__(self, config: PixelConfig) -> None:
        super().__init__()
        dim, groups, levels = config.feat_channels, config.num_groups, config.num_levels
        self.num_feats = dim // 2
        self.input_convs = nn.ModuleList(
            ConvNorm(config.dims[3 - i], dim, 1, groups, bias=True) for i in range(levels)
        )
        self.encoder = Layers(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.level_encoding = nn.Embedding(levels, dim)
        self.lateral_convs = nn.ModuleList([ConvNorm(config.dims[0], dim, 1, groups, bias=False)])
        self.output_convs = nn.ModuleList([ConvNorm(dim, dim, 3, groups, bias=False, relu=True)])
        self.mask_feature = nn.Conv2d(dim, dim, 1)

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        levels = [conv(features[3 - i]) for i, conv in enumerate(self.input_convs)]
        shapes = [(level.shape[2], level.shape[3]) for level in levels]
        x = torch.cat([level.flatten(2) for level in levels], dim=2).transpose(1, 2)  # [B, sum(HW), D]
        pos, reference = self.positions(shapes)
        for layer in self.encoder.layers:
            x = layer(x, pos.to(x), reference.to(x), shapes)
        memories = [
            part.transpose(1, 2).unflatten(2, shape)
            for part, shape in zip(x.split([h * w for h, w in shapes], dim=1), shapes, strict=True)
        ]
        lateral = self.lateral_convs[0](features[0])
        up = F.interpolate(memories[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return self.mask_feature(self.output_convs[0](lateral + up)), memories

    def positions(self, shapes: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Return sine code + level embedding [L,D] and pixel centres (x, y) in [0,1] [L,2] of all levels."""
        codes, centres = [], []
        for (h, w), level in zip(shapes, self.level_encoding.weight, strict=True):
            codes.append(sine_encoding(h, w, self.num_feats).to(level).flatten(1).T + level)
            y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
            centres.append(torch.stack([x, y], dim=-1).flatten(0, 1))
        return torch.cat(codes), torch.cat(centres)
