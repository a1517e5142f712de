"""Trace the four stages beside the language model into portable graphs."""

from __future__ import annotations

import onnx_ir as ir
import torch

from ..config import LiraConfig, PixelConfig
from ..model.lira import PixelEncoder
from ..model.mask_decoder import MaskDecoder
from ..model.projector import Projector, TextToVision
from ..model.vit import SemanticEncoder
from .functions import DOMAIN, DOMAIN_VERSION, deformable_sampling
from .pixel_encoder import PixelEncoderStage, memory_sizes
from .sefe import SefeStage
from .seg_mask import PixelDecoderStage
from .trace import trace


def level_names(config: PixelConfig, kind: str) -> list[str]:
    """Return ``kind_32``, ``kind_16``, ``kind_8``: tensors of the levels, named by their strides."""
    return [f"{kind}_{config.image_size // height}" for height, _ in memory_sizes(config)]


def pixel_encoder_outputs(config: PixelConfig) -> list[str]:
    """Return the names of the pixel encoder's outputs. From the fourth on they go into the pixel decoder."""
    levels = [*level_names(config, "attention_features"), *level_names(config, "memory")]
    return ["pixel_features", "queries", "query_valid", "mask_features", *levels]


def semantic_encoder(encoder: SemanticEncoder, config: LiraConfig) -> ir.Model:
    """pixel_values [T,3,S,S] -> features [T,N,C]."""
    size = config.vision.image_size
    tiles = {"pixel_values": torch.zeros(2, 3, size, size)}
    return trace("semantic_encoder", encoder, tiles, ["features"], {"pixel_values": {0: "T"}})


def pixel_encoder(encoder: PixelEncoder, config: LiraConfig) -> ir.Model:
    """pixel_values [1,3,P,P] -> :func:`pixel_encoder_outputs`."""
    c = config.pixel
    image = {"pixel_values": torch.zeros(1, 3, c.image_size, c.image_size)}
    model = trace("pixel_encoder", PixelEncoderStage(encoder), image, pixel_encoder_outputs(c))
    body = deformable_sampling(memory_sizes(c), c.num_heads, c.feat_channels // c.num_heads, c.num_points)
    model.functions[body.identifier()] = body
    model.opset_imports[DOMAIN] = DOMAIN_VERSION
    return model


def sefe(projector: Projector, config: LiraConfig) -> ir.Model:
    """features [1,M,C], pixel_features [1,cells,F+2D], queries [1,Q,2D] -> pixel_tokens, query_tokens."""
    c, width = config.pixel, config.llm.hidden_size
    query = 2 * c.feat_channels
    inputs = {
        "features": torch.zeros(1, 2 * config.vision.tokens_per_tile, width),
        "pixel_features": torch.zeros(1, c.grid**2, c.shuffled_channels + query),
        "queries": torch.zeros(1, c.num_queries, query),
    }
    outputs = ["pixel_tokens", "query_tokens"]
    return trace("sefe", SefeStage(projector), inputs, outputs, {"features": {1: "M"}})


def pixel_decoder(text2vision: TextToVision, decoder: MaskDecoder, config: LiraConfig) -> ir.Model:
    """hidden_states [1,C] and the image's features and memories -> mask_logits [1,P/4,P/4]."""
    c = config.pixel

    def levels(kind: str) -> dict[str, torch.Tensor]:
        # Each needs a tensor of its own: the exporter joins inputs that are the same tensor.
        shapes = ((1, c.feat_channels, *size) for size in memory_sizes(c))
        return {name: torch.zeros(shape) for name, shape in zip(level_names(c, kind), shapes, strict=True)}

    inputs = {
        "hidden_states": torch.zeros(1, config.llm.hidden_size),
        "mask_features": torch.zeros(1, c.feat_channels, c.image_size // 4, c.image_size // 4),
        "attention_features": levels("attention_features"),
        "memories": levels("memory"),
    }
    return trace("pixel_decoder", PixelDecoderStage(text2vision, decoder), inputs, ["mask_logits"])
