"""ConvNeXt trunk of open_clip's convnext_large_d_320. Source: timm's convnext.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import PixelConfig
from .vit import Mlp


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of [B,C,H,W]."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Depthwise 7x7, LayerNorm, MLP with exact GELU, layer scale: [B,C,H,W] -> same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1))) * self.gamma
        return x + y.permute(0, 3, 1, 2)


class Stage(nn.Module):
    """Optional 2x2 downsampling, then blocks."""

    def __init__(self, dim_in: int, dim: int, depth: int, first: bool) -> None:
        super().__init__()
        self.downsample = (
            nn.Identity() if first else nn.Sequential(LayerNorm2d(dim_in), nn.Conv2d(dim_in, dim, 2, 2))
        )
        self.blocks = nn.Sequential(*(Block(dim) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.downsample(x))


class ConvNeXt(nn.Module):
    """pixel_values [B,3,P,P] -> features at strides 4, 8, 16, 32 with ``dims`` channels."""

    def __init__(self, config: PixelConfig) -> None:
        super().__init__()
        dims = config.dims
        self.stem = nn.Sequential(nn.Conv2d(3, dims[0], 4, 4), LayerNorm2d(dims[0]))
        before = (dims[0], *dims[:-1])
        for i, (dim_in, dim, depth) in enumerate(zip(before, dims, config.depths, strict=True)):
            setattr(self, f"layer{i + 1}", Stage(dim_in, dim, depth, first=i == 0))

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        x, out = self.stem(pixel_values), []
        for i in range(4):
            x = getattr(self, f"layer{i + 1}")(x)
            out.append(x)
        return out


def shuffle_cells(features: Tensor, ratio: int) -> Tensor:
    """Fold r x r neighbours into channels (row, column, channel): [B,C,H,W] -> [B,cells,r*r*C]."""
    b, c, h, w = features.shape
    x = features.reshape(b, c, h // ratio, ratio, w // ratio, ratio).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(b, (h // ratio) * (w // ratio), ratio * ratio * c)
