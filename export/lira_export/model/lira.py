"""The torch reference of LIRA. Its submodules are the stages, which are exported one by one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..config import LiraConfig
from .convnext import ConvNeXt, shuffle_cells
from .language_model import LanguageModel
from .mask_decoder import MaskDecoder
from .pixel_decoder import PixelDecoder
from .projector import Projector, TextToVision, cell_queries
from .vit import SemanticEncoder


class PixelFeatures(NamedTuple):
    """Outputs of the pixel encoder for a batch of images."""

    pixel_features: Tensor  # [B, cells, F + 2D]
    queries: Tensor  # [B, Q, 2D], query feature then query position
    query_valid: Tensor  # [B, Q] bool
    mask_features: Tensor  # [B, D, P/4, P/4]
    memories: list[Tensor]  # [B, D, h, w] at strides 32, 16, 8
    class_logits: Tensor  # [B, Q, classes + 1]
    mask_logits: Tensor  # [B, Q, P/4, P/4]
    mask_logits_all: list[Tensor]
    probability: Tensor  # [B, Q, g, g], by which queries own cells


class PixelEncoder(nn.Module):
    """ConvNeXt, pixel decoder, learned queries: pixel_values [B,3,P,P] -> PixelFeatures.

    ``masks_at_once``: so many queries' masks are in memory at the size of the image, and masks of the last
    layer only; None for all queries and layers, as upstream.
    """

    def __init__(self, config: LiraConfig, prototypes: int = 1) -> None:
        super().__init__()
        self.config = config.pixel
        self.masks_at_once: int | None = None
        self.backbone = ConvNeXt(config.pixel)
        self.pixel_decoder = PixelDecoder(config.pixel)
        self.mask_decoder = MaskDecoder(config.pixel, prototypes)

    def forward(self, pixel_values: Tensor) -> PixelFeatures:
        c = self.config
        trunk = self.backbone(pixel_values)
        mask_features, memories = self.pixel_decoder(trunk)
        feat, pos = self.mask_decoder.learned_queries(pixel_values.shape[0])
        few = self.masks_at_once is not None
        decoded = self.mask_decoder(feat, pos, mask_features, memories, last_only=few)
        classes = self.mask_decoder.class_logits(decoded.query_feat, decoded.mask_logits, mask_features)
        queries = torch.cat([decoded.query_feat, pos], dim=-1)
        pixel_queries, valid, probability = cell_queries(
            classes, decoded.mask_logits, queries, c.image_size, c.grid, self.masks_at_once
        )
        cells = torch.cat([shuffle_cells(trunk[-1], c.cell_shuffle), pixel_queries], dim=-1)
        return PixelFeatures(
            cells,
            queries,
            valid,
            mask_features,
            memories,
            classes,
            decoded.mask_logits,
            decoded.mask_logits_all,
            probability,
        )


class Lira(nn.Module):
    """All stages. :mod:`lira_export.checkpoint` maps upstream's names to these parameters."""

    def __init__(self, config: LiraConfig, prototypes: int = 1) -> None:
        super().__init__()
        self.config = config
        width = config.llm.hidden_size
        self.semantic_encoder = SemanticEncoder(config.vision, width)
        self.pixel_encoder = PixelEncoder(config, prototypes)
        self.projector = Projector(config.pixel, config.projector, width)
        self.llm = LanguageModel(config.llm)
        self.text2vision = TextToVision(width, config.pixel, config.projector)

    def decode_masks(
        self, hidden_states: Tensor, mask_features: Tensor, memories: list[Tensor]
    ) -> list[Tensor]:
        """Decode hidden states of [SEG] [N,C] of one image; see :meth:`decode_queries`."""
        return self.decode_queries(self.text2vision(hidden_states), mask_features, memories)

    def decode_queries(self, queries: Tensor, mask_features: Tensor, memories: list[Tensor]) -> list[Tensor]:
        """Decode queries [N,2D] of one image: mask logits [N,P/4,P/4] before layer 0 and after each."""
        feat, pos = queries[None].chunk(2, dim=-1)
        decoder = self.pixel_encoder.mask_decoder
        decoded = decoder(feat, pos, mask_features, memories, isolated=True)
        return [logits[0] for logits in decoded.mask_logits_all]
