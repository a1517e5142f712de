"""Count the values in each stage's parameters from a configuration, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from .config import LiraConfig, LlmConfig, PixelConfig, VisionConfig


@dataclass(frozen=True)
class Count:
    """Values in tensors of two or more dimensions, and in vectors."""

    matrices: int = 0
    vectors: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.matrices + other.matrices, self.vectors + other.vectors)

    def __mul__(self, times: int) -> Count:
        return Count(self.matrices * times, self.vectors * times)

    @property
    def values(self) -> int:
        """All values."""
        return self.matrices + self.vectors


def count_parameters(config: LiraConfig) -> dict[str, Count]:
    """Return stage -> its parameters; the language model's without the table of token embeddings."""
    width, pixel, projector = config.llm.hidden_size, config.pixel, config.projector
    query, cell = 2 * pixel.feat_channels, pixel.shuffled_channels
    decoder = _mask_decoder(pixel)
    return {
        "semantic_encoder": _vit(config.vision, width),
        "pixel_encoder": _convnext(pixel) + _deformable_decoder(pixel) + decoder,
        "sefe": _linear(query, cell)
        + _mlp(cell, width, projector.depth)
        + _mlp(cell + query, width, projector.depth)
        + _attention(width)
        + _norm(width) * 2
        + Count(2 * width),  # the separators
        "llm": _llm(config.llm),
        "pixel_decoder": _mlp(width, query, projector.text2vision_depth) + decoder,
    }


def _linear(inputs: int, outputs: int, bias: bool = True) -> Count:
    return Count(inputs * outputs, outputs if bias else 0)


def _norm(width: int) -> Count:
    return Count(0, 2 * width)


def _mlp(inputs: int, outputs: int, depth: int) -> Count:
    return _linear(inputs, outputs) + _linear(outputs, outputs) * (depth - 1)


def _attention(width: int) -> Count:
    return _linear(width, 3 * width) + _linear(width, width)


def _vit(c: VisionConfig, width: int) -> Count:
    d, shuffled = c.hidden_size, c.hidden_size * c.shuffle**2
    patches = (c.image_size // c.patch_size) ** 2
    layer = _norm(d) * 2 + _attention(d) + _feed_forward(d, c.intermediate_size) + Count(0, 2 * d)
    return (
        _linear(3 * c.patch_size**2, d)
        + Count((patches + 2) * d)  # class token and positions
        + layer * c.num_layers
        + _norm(shuffled)
        + _mlp(shuffled, width, 2)
    )


def _feed_forward(width: int, hidden: int) -> Count:
    return _linear(width, hidden) + _linear(hidden, width)


def _convnext(c: PixelConfig) -> Count:
    total = _linear(3 * 4 * 4, c.dims[0]) + _norm(c.dims[0])
    for before, dim, depth in zip((0, *c.dims[:-1]), c.dims, c.depths, strict=True):
        if before:
            total += _norm(before) + _linear(before * 2 * 2, dim)
        total += (_linear(7 * 7, dim) + _norm(dim) + _feed_forward(dim, 4 * dim) + Count(0, dim)) * depth
    return total


def _deformable_decoder(c: PixelConfig) -> Count:
    d, samples = c.feat_channels, c.num_heads * c.num_levels * c.num_points
    layer = (
        _linear(d, 2 * samples)
        + _linear(d, samples)
        + _linear(d, d) * 2
        + _feed_forward(d, c.encoder_ffn)
        + _norm(d) * 2
    )
    total = layer * c.encoder_layers + Count(c.num_levels * d)
    for i in range(c.num_levels):
        total += _linear(c.dims[3 - i], d) + _norm(d)
    lateral = _linear(c.dims[0], d, bias=False) + _norm(d)
    output = _linear(d * 3 * 3, d, bias=False) + _norm(d)
    return total + lateral + output + _linear(d, d)


def _mask_decoder(c: PixelConfig) -> Count:
    d = c.feat_channels
    layer = _attention(d) * 2 + _feed_forward(d, c.decoder_ffn) + _norm(d) * 3
    return (
        layer * c.decoder_layers
        + _norm(d)
        + Count(d * (2 * c.num_queries + c.num_levels))
        + _mlp(d, d, 2) * 3
        + _linear(d, d)  # the last layers of the three: mask embedding, class, IoU
        + _linear(d, c.clip_embed_dim)
        + _linear(d, 1)
        + _norm(d)
        + _linear(d, d)
        + Count(3 * d)  # region and point prompts
        + _linear(4 * c.prompt_num_feats, d)
    )


def _llm(c: LlmConfig) -> Count:
    width, keys = c.hidden_size, c.num_kv_heads * c.head_dim
    layer = (
        _linear(width, width + 2 * keys, c.qkv_bias)
        + _linear(width, width, bias=False)
        + _linear(width, c.intermediate_size, bias=False) * 3
        + Count(0, 2 * width)
    )
    return layer * c.num_layers + Count(c.vocab_size * width, width)
