"""What a bundle will be, from configuration and tokenizer alone: neither weights nor torch are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenizers import Tokenizer

from lira_engine.bundle.manifest import MANIFEST_NAME, PromptSpec, TokenSpec

from .config import LiraConfig
from .dtypes import BYTES, stage_dtypes
from .parameters import count_parameters
from .prompts import prompts_of
from .tokenizer import special_tokens

DEFAULT_CONTEXT_LENGTH = 4096
TABLE_ROWS, VISUAL_ROWS = 12, 4
"""Embeddings in the language model's check vectors: of tokens, and of tiles, cells and queries each."""
TILES = 2
"""Tiles in the semantic encoder's check vectors."""
_GRAPH_BYTES = 64 << 10  # of a graph without its weights: 16 to 160 KiB in lira-nano
_MANIFEST_BYTES = 12 << 10
# Within 9 % of the measured peaks of four exports (docs/true-size.md; lira-nano: 503 MiB): libraries,
# reference and graph of the pixel encoder by its pixels, two copies of the table of embeddings in fp32.
_LIBRARY_BYTES = 440 << 20
_BYTES_PER_PIXEL = 1500
_TABLE_COPIES = 2


@dataclass(frozen=True)
class BundlePlan:
    """What is decided about a bundle before weights are read.

    Attributes:
        context_length: slots of the KV cache. dtypes: stage -> dtype of its weights.
        stage_files: stage -> file -> about how many bytes. other_files: file -> about how many bytes.
        memory: about how many bytes writing it takes at its peak.
    """

    context_length: int
    dtypes: Mapping[str, str]
    prompts: PromptSpec
    tokens: TokenSpec
    stage_files: Mapping[str, Mapping[str, int]]
    other_files: Mapping[str, int]
    memory: int

    @property
    def bytes(self) -> int:
        """About how many bytes the bundle takes."""
        return sum(map(sum, (files.values() for files in self.stage_files.values()))) + sum(
            self.other_files.values()
        )


def plan_bundle(
    config: LiraConfig,
    tokenizer: Tokenizer,
    context_length: int | None = None,
    dtypes: Mapping[str, str] | None = None,
    stored_dtype: str = "float16",
) -> BundlePlan:
    """Decide what a bundle will be; LIRA's tokens are appended to ``tokenizer``, in place.

    Args:
        context_length: None for the checkpoint's own, or at most 4096.
        dtypes, stored_dtype: see :func:`~lira_export.dtypes.stage_dtypes`.

    Raises:
        LiraError: prompts, tokens, context length or dtypes do not fit the checkpoint or this package.
    """
    prompts = prompts_of(config)
    tokens = special_tokens(tokenizer, config)
    length = _context_length(config, context_length)
    kept = stage_dtypes(dtypes or {}, stored_dtype)
    table = config.llm.vocab_size * config.llm.hidden_size
    vectors, constants = _check_vector_bytes(config, length), _constant_bytes(config, length)
    stages = {}
    for stage, count in count_parameters(config).items():
        weights = count.matrices * BYTES[kept[stage]] + count.vectors * 4
        stages[stage] = {
            f"{stage}.onnx": _GRAPH_BYTES,
            f"{stage}.onnx.data": weights + constants.get(stage, 0),
            f"checks/{stage}.npz": vectors[stage],
        }
    others = {
        "embeddings.npy": table * (2 if kept["llm"] == "fp16" else 4),  # NumPy has no bf16
        "separators.npy": 2 * config.llm.hidden_size * 4,
        "tokenizer.json": len(tokenizer.to_str(pretty=True).encode()),
        MANIFEST_NAME: _MANIFEST_BYTES,
    }
    memory = _LIBRARY_BYTES + _BYTES_PER_PIXEL * config.pixel.image_size**2 + _TABLE_COPIES * 4 * table
    return BundlePlan(length, kept, prompts, tokens, stages, others, memory)


def _context_length(config: LiraConfig, asked: int | None) -> int:
    length = asked or config.context_length
    length = length or min(config.llm.max_position_embeddings, DEFAULT_CONTEXT_LENGTH)
    image = config.tiles.min_num * config.vision.tokens_per_tile + config.pixel.grid**2
    config.llm.check_context_length(length, least=image + 1)
    return length


def _check_vector_bytes(config: LiraConfig, context_length: int) -> dict[str, int]:
    """Return stage -> bytes of the inputs and outputs that its check vectors record."""
    c, width = config.pixel, config.llm.hidden_size
    query, cells = 2 * c.feat_channels, c.grid**2
    features = TILES * config.vision.tokens_per_tile * width
    pixel_tokens, queries = cells * (c.shuffled_channels + query), c.num_queries * query
    maps = c.feat_channels * ((c.image_size // 4) ** 2 + 2 * _memory_pixels(config))
    rows = min(TABLE_ROWS + 3 * VISUAL_ROWS, context_length)
    values = {
        "semantic_encoder": TILES * 3 * config.vision.image_size**2 + features,
        "pixel_encoder": 3 * c.image_size**2 + pixel_tokens + queries + maps,
        "sefe": features + pixel_tokens + queries + (cells + c.num_queries) * width,
        "llm": rows * width + min(4, rows) * (width + config.llm.vocab_size),
        "pixel_decoder": width + maps + (c.image_size // 4) ** 2,
    }
    return {stage: 4 * count for stage, count in values.items()}


def _constant_bytes(config: LiraConfig, context_length: int) -> dict[str, int]:
    """Return stage -> bytes of large constants in its graph: positions of pixels, rotary tables."""
    fixed = context_length <= config.llm.max_position_embeddings
    return {
        "pixel_encoder": 2 * 4 * _memory_pixels(config) * config.pixel.feat_channels,
        "llm": 4 * context_length * config.llm.head_dim if fixed else 0,
    }


def _memory_pixels(config: LiraConfig) -> int:
    return sum((config.pixel.image_size >> (5 - i)) ** 2 for i in range(config.pixel.num_levels))
