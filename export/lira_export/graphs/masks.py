"""Use the masks of all object queries without computing them at full size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PixelConfig


def bilinear_taps(positions: Tensor, scale: float, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return what bilinear resizing (align_corners False, no antialias) reads along one axis.

    Args:
        positions: output pixels. scale: input size / output size. size: input size.

    Returns:
        Lower and upper input pixel, weight of the upper one.
    """
    source = ((positions + 0.5) * scale - 0.5).clamp(min=0)
    low = source.floor().long()
    return low, (low + 1).clamp(max=size - 1), source - low


class CellProbabilities(nn.Module):
    """Score-weighted mask probability of every query on the cell grid.

    Upstream resizes the mask logits to the image, applies sigmoid and score, and resizes to the grid. A cell
    reads 2 x 2 pixels of the image, and a logit there is a bilinear mix of logits at stride 4. Mixing is
    linear, and so is the matmul with a mask embedding: the mask features are mixed at the 4 pixels of each
    cell, and multiplied there. Equals :func:`lira_export.model.projector.cell_queries`.
    """

    low: Tensor
    high: Tensor
    fraction: Tensor
    average: Tensor

    def __init__(self, config: PixelConfig) -> None:
        super().__init__()
        image, grid = config.image_size, config.grid
        first, second, weight = bilinear_taps(torch.arange(grid), image / grid, image)
        read = torch.stack([first, second], dim=1).flatten()  # 2 * grid rows, or columns, of the image
        low, high, fraction = bilinear_taps(read, 0.25, image // 4)
        average = torch.stack([1 - weight, weight], dim=1)  # [grid, 2]
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("fraction", fraction)
        self.register_buffer("average", torch.block_diag(*average.split(1)))  # [grid, 2 * grid]

    def forward(self, mask_embedding: Tensor, mask_features: Tensor, score: Tensor) -> Tensor:
        """mask_embedding [B,Q,D], mask_features [B,D,P/4,P/4], score [B,Q] -> [B,Q,grid,grid]."""
        rows = self._mix(mask_features, 2, self.fraction[:, None])  # [B, D, 2g, P/4]
        points = self._mix(rows, 3, self.fraction)  # [B, D, 2g, 2g]
        probability = (mask_embedding @ points.flatten(2)).sigmoid().unflatten(2, points.shape[2:])
        return (score * 0.5 + 0.5)[..., None, None] * (self.average @ probability @ self.average.T)

    def _mix(self, x: Tensor, axis: int, fraction: Tensor) -> Tensor:
        low, high = x.index_select(axis, self.low), x.index_select(axis, self.high)
        return low * (1 - fraction) + high * fraction


def resized_mask_features(mask_features: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Return the mask features at the size of each memory [B,D,h,w].

    Between decoder layers a mask is only an attention mask, at a memory's size. Resizing is linear, and so is
    the matmul with a mask embedding: the features are resized once for all layers and queries.
    """
    return [F.interpolate(mask_features, size, mode="bilinear", align_corners=False) for size in sizes]


def allowed_positions(mask_embedding: Tensor, attention_features: Tensor) -> Tensor:
    """mask_embedding [B,Q,D], attention_features [B,D,h,w] -> where each query may attend, bool [B,Q,h*w].

    A query attends where its mask is not negative, or everywhere if its whole mask is negative.
    """
    logits = mask_embedding @ attention_features.flatten(2)
    return (logits >= 0) | (logits.amax(-1, keepdim=True) < 0)
