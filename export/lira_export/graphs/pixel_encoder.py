"""The pixel encoder for the graph: the reference's result with less work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import PixelConfig
from ..model.convnext import shuffle_cells
from ..model.lira import PixelEncoder
from ..model.mask_decoder import DecoderLayer, MaskDecoder
from ..model.pixel_decoder import DeformableAttention, PixelDecoder, deformable_sampling, sine_encoding
from .attention import SplitAttention
from .functions import DOMAIN_VERSION
from .masks import CellProbabilities, allowed_positions, resized_mask_features

Sizes = Sequence[tuple[int, int]]


def memory_sizes(config: PixelConfig) -> list[tuple[int, int]]:
    """Return (H, W) of the memories, lowest resolution first: strides 32, 16, 8 for three levels."""
    return [(config.image_size >> (5 - i),) * 2 for i in range(config.num_levels)]


class DeformableNode(nn.Module):
    """Deformable attention that samples by one node, ``lira.DeformableSampling``."""

    def __init__(self, attention: DeformableAttention, sizes: Sizes) -> None:
        super().__init__()
        self.attention = attention
        self.sizes = list(sizes)

    def forward(self, x: Tensor, pos: Tensor, reference: Tensor, scale: Tensor) -> Tensor:
        """x [1,L,D], pos [L,D], reference [L,1,1,1,2], scale [levels,1,2] -> x + attention."""
        a = self.attention
        query, shape = x + pos, (a.heads, a.levels, a.points)
        offsets = a.sampling_offsets(query).unflatten(-1, (*shape, 2))
        weights = a.attention_weights(query).unflatten(-1, (a.heads, -1)).softmax(-1).unflatten(-1, shape[1:])
        value = a.value_proj(x).unflatten(-1, (a.heads, -1))
        return x + a.output_proj(self._sample(value, reference + offsets * scale, weights))

    def _sample(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        if not torch.onnx.is_in_onnx_export():
            return deformable_sampling(value, locations, weights, self.sizes)
        return torch.onnx.ops.symbolic(
            "lira::DeformableSampling",
            (value, locations, weights),
            {"level_shapes": [side for size in self.sizes for side in size]},
            dtype=value.dtype,
            shape=(*value.shape[:2], value.shape[2] * value.shape[3]),
            version=DOMAIN_VERSION,
        )


class LoweredPixelDecoder(nn.Module):
    """res2..res5 -> mask features [1,D,P/4,P/4] and memories. Positions are constants."""

    positions: Tensor
    reference: Tensor
    scale: Tensor

    def __init__(self, decoder: PixelDecoder, sizes: Sizes) -> None:
        super().__init__()
        self.decoder = decoder
        self.sizes = list(sizes)
        positions, reference = decoder.positions(sizes)
        scale = torch.tensor([[1 / w, 1 / h] for h, w in sizes])  # offsets are in pixels of the sampled level
        self.register_buffer("positions", positions.detach(), persistent=False)
        self.register_buffer("reference", reference[:, None, None, None], persistent=False)
        self.register_buffer("scale", scale[:, None], persistent=False)
        self.attention = nn.ModuleList(
            DeformableNode(layer.self_attn, sizes) for layer in decoder.encoder.layers
        )

    def forward(self, features: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        d = self.decoder
        levels = [conv(features[3 - i]) for i, conv in enumerate(d.input_convs)]
        x = torch.cat([level.flatten(2) for level in levels], dim=2).transpose(1, 2)  # [1, sum(HW), D]
        for layer, attention in zip(d.encoder.layers, self.attention, strict=True):
            x = layer.norms[0](attention(x, self.positions, self.reference, self.scale))
            x = layer.norms[1](layer.ffn(x))
        parts = x.split([h * w for h, w in self.sizes], dim=1)
        flat = [part.transpose(1, 2) for part in parts]
        memories = [memory.unflatten(2, size) for memory, size in zip(flat, self.sizes, strict=True)]
        lateral = d.lateral_convs[0](features[0])
        up = F.interpolate(memories[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        return d.mask_feature(d.output_convs[0](lateral + up)), memories


class LoweredDecoderLayer(nn.Module):
    """The reference's decoder layer. It takes allowed positions, not blocked ones."""

    def __init__(self, layer: DecoderLayer) -> None:
        super().__init__()
        self.cross_attn = SplitAttention(layer.cross_attn.attn)
        self.self_attn = SplitAttention(layer.self_attn.attn)
        self.ffn, self.norms = layer.ffn, layer.norms

    def forward(self, x: Tensor, pos: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
        x = self.norms[0](x + self.cross_attn(x + pos, key, value, allowed))
        x = self.norms[1](x + self.self_attn(x + pos, x + pos, x))
        return self.norms[2](self.ffn(x))


class LearnedQueries(nn.Module):
    """Passes the learned queries through all decoder layers."""

    query_feat: Tensor
    query_pos: Tensor
    first_embedding: Tensor

    def __init__(self, decoder: MaskDecoder, sizes: Sizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LoweredDecoderLayer(x) for x in decoder.transformer_decoder.layers)
        self.post_norm, self.mask_embed = decoder.transformer_decoder.post_norm, decoder.mask_embed
        feat, pos = decoder.learned_queries(1)
        constants = {"query_feat": feat, "query_pos": pos, "first_embedding": decoder.mask_embedding(feat)}
        for i, (size, level) in enumerate(zip(sizes, decoder.level_embed.weight, strict=True)):
            code = sine_encoding(*size, decoder.config.feat_channels // 2)
            constants |= {f"level_{i}": level[:, None], f"position_{i}": code.flatten(1).T}
        for name, value in constants.items():
            self.register_buffer(name, value.detach().contiguous(), persistent=False)

    def forward(
        self, attention_features: Sequence[Tensor], memories: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Lists of [1,D,h,w] -> query features, these after post_norm, mask embeddings; each [1,Q,D]."""
        keys = []
        for i, memory in enumerate(memories):
            value = (memory.flatten(2) + getattr(self, f"level_{i}")).transpose(1, 2)
            keys.append((value + getattr(self, f"position_{i}"), value))
        x, normed, embedding = self.query_feat, self.query_feat, self.first_embedding
        for i, layer in enumerate(self.layers):
            level = i % len(memories)
            allowed = allowed_positions(embedding, attention_features[level])
            x = layer(x, self.query_pos, *keys[level], allowed)
            normed = self.post_norm(x)
            embedding = self.mask_embed(normed)
        return x, normed, embedding


class ClassScore(nn.Module):
    """Highest probability of a real class per query. Only this needs every mask at stride 4."""

    class_embed: Tensor

    def __init__(self, decoder: MaskDecoder) -> None:
        super().__init__()
        self.mask_pooling_proj, self.cls_proj = decoder.mask_pooling_proj, decoder.cls_proj
        self.classes = decoder.config.num_classes + 1
        # Scaled, with the all-zero embedding of void appended: [dim, (classes + 1) * prototypes]
        scaled = decoder.class_embed * torch.tensor(decoder.config.logit_scale_ln).exp()
        padded = F.pad(scaled, (0, 0, 0, 0, 0, 1)).flatten(0, 1).T
        self.register_buffer("class_embed", padded.contiguous(), persistent=False)

    def forward(self, normed: Tensor, mask_embedding: Tensor, mask_features: Tensor) -> Tensor:
        """[1,Q,D], [1,Q,D], [1,D,P/4,P/4] -> [1,Q]. Void takes part in the softmax only."""
        features = mask_features.flatten(2)  # [1, D, P/4 * P/4]
        inside = (mask_embedding @ features > 0).to(features.dtype)
        # Upstream adds 1e-8 to the count, which matters for an empty mask only. Graph optimizers drop an
        # addition as small as that.
        pooled = inside @ features.transpose(1, 2) / inside.sum(-1, keepdim=True).clamp(min=1)
        embedded = F.normalize(self.cls_proj(self.mask_pooling_proj(pooled) + normed), dim=-1)
        logits = (embedded @ self.class_embed).unflatten(-1, (self.classes, -1)).amax(-1)
        return logits.softmax(-1)[..., :-1].amax(-1)


class PixelEncoderStage(nn.Module):
    """pixel_values [1,3,P,P] -> pixel_features, queries, query_valid, mask_features, then the levels of
    attention_features, then the levels of memories.
    """

    indices: Tensor

    def __init__(self, encoder: PixelEncoder) -> None:
        super().__init__()
        c = self.config = encoder.config
        self.sizes = memory_sizes(c)
        self.backbone = encoder.backbone
        self.pixel_decoder = LoweredPixelDecoder(encoder.pixel_decoder, self.sizes)
        self.queries = LearnedQueries(encoder.mask_decoder, self.sizes)
        self.score = ClassScore(encoder.mask_decoder)
        self.cells = CellProbabilities(c)
        self.register_buffer("indices", torch.arange(c.num_queries)[:, None], persistent=False)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        trunk = self.backbone(pixel_values)
        mask_features, memories = self.pixel_decoder(trunk)
        attention_features = resized_mask_features(mask_features, self.sizes)
        feat, normed, embedding = self.queries(attention_features, memories)
        score = self.score(normed, embedding, mask_features)
        queries = torch.cat([feat, self.queries.query_pos], dim=-1)
        probability = self.cells(embedding, mask_features, score).flatten(2)  # [1, Q, cells]
        pixel_queries = probability.softmax(1).transpose(1, 2) @ queries
        cells = torch.cat([shuffle_cells(trunk[-1], self.config.cell_shuffle), pixel_queries], dim=-1)
        owner = probability.argmax(1, keepdim=True)  # [1, 1, cells]
        valid = (owner == self.indices).to(feat.dtype).amax(-1) > 0
        return cells, queries, valid, mask_features, *attention_features, *memories
