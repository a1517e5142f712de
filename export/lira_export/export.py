"""Checkpoint to bundle: stage by stage, so that no more than one stage's weights are in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from lira_engine.atomic import atomic_directory
from lira_engine.errors import LiraError
from lira_engine.manifest import ModelSpec, PreprocessingSpec, RegionSpec
from lira_engine.verify import sha256_of

from . import checks
from .bundle_writer import BundleWriter, Progress
from .checkpoint import Checkpoint
from .config import LiraConfig
from .graphs import vision
from .graphs.llm import build_llm
from .model.lira import PixelEncoder
from .model.mask_decoder import MaskDecoder
from .model.projector import Projector, TextToVision
from .model.vit import SemanticEncoder
from .prompts import prompts_of
from .tokenizer import read_tokenizer, special_tokens

DEFAULT_CONTEXT_LENGTH = 4096
REGION_BRIGHTNESS = 0.3  # upstream darkens what is outside of the mask by this factor
_TOOLS = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "tokenizers")


def export_checkpoint(
    checkpoint: Checkpoint | str | Path,
    out: str | Path,
    *,
    config: LiraConfig | None = None,
    tokenizer: Tokenizer | None = None,
    context_length: int | None = None,
    overwrite: bool = False,
    progress: Progress = lambda stage, phase: None,
) -> Path:
    """Write the bundle of a checkpoint to ``out``, whole or not at all, and return its path.

    Args:
        config: overrides what the checkpoint's folder says of itself.
        tokenizer: replaces the base model's tokenizer.json; LIRA's tokens are appended to it.
        context_length: slots of the KV cache; the checkpoint's own, or at most 4096, where it is None.
        overwrite: replace an existing bundle.

    Raises:
        LiraError: the checkpoint is not one, ``out`` exists, or a graph does not do what the reference does.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.open(checkpoint, config)
    config = checkpoint.config
    # What is quick and may fail goes first.
    prompts = prompts_of(config)
    tokenizer = tokenizer or read_tokenizer(checkpoint.base)
    tokens = special_tokens(tokenizer, config)
    slots = _context_length(config, context_length)
    with atomic_directory(out, overwrite=overwrite) as folder:
        writer = BundleWriter(folder, progress)
        _write_stages(writer, checkpoint, slots)
        writer.tokenizer(tokenizer)
        writer.finish(
            name=config.name,
            lira_edge_version=metadata.version("lira-edge"),
            provenance=_provenance(checkpoint),
            model=_model_spec(config, slots),
            preprocessing=PreprocessingSpec(config.tiles, config.pixels, RegionSpec(REGION_BRIGHTNESS)),
            tokens=tokens,
            prompts=prompts,
        )
    return Path(out)


def _write_stages(writer: BundleWriter, checkpoint: Checkpoint, slots: int) -> None:
    """Each stage: what the reference answers, the graph, and the graph's own answer against it."""
    config, progress = checkpoint.config, writer.progress
    c, width = config.pixel, config.llm.hidden_size
    table = writer.array("embeddings", checkpoint.tensor("llm.tok_embeddings.weight"))

    progress("semantic_encoder", "reference")
    encoder = checkpoint.load_part(lambda: SemanticEncoder(config.vision, width), "semantic_encoder.")
    tiles = checks.semantic_encoder(encoder, config)
    progress("semantic_encoder", "graph")
    writer.stage("semantic_encoder", vision.semantic_encoder(encoder, config), tiles)
    del encoder
    features = tiles.outputs["features"]

    progress("pixel_encoder", "reference")
    prototypes = checkpoint.class_embed.shape[1]
    pixel = checkpoint.load_part(lambda: PixelEncoder(config, prototypes), "pixel_encoder.")
    picture = checks.pixel_encoder(pixel, config)
    progress("pixel_encoder", "graph")
    writer.stage("pixel_encoder", vision.pixel_encoder(pixel, config), picture)
    del pixel

    progress("sefe", "reference")
    projector = checkpoint.load_part(lambda: Projector(c, config.projector, width), "projector.")
    separators = projector.seperate_embed_internvl.weight, projector.seperate_embed.weight
    writer.array("separators", torch.cat(separators))
    fused = checks.sefe(projector, features, picture.outputs)
    progress("sefe", "graph")
    writer.stage("sefe", vision.sefe(projector, config), fused)
    del projector

    progress("llm", "reference")
    some = np.linspace(0, len(table) - 1, 12).astype(int)
    rows = [
        table[some],
        features[0, :4],
        *(fused.outputs[name][0, :4] for name in ("pixel_tokens", "query_tokens")),
    ]
    sequence = checks.llm(checkpoint, rows, slots)
    progress("llm", "graph")
    writer.stage("llm", build_llm(config.llm, LlmTensors(checkpoint), slots), sequence)

    progress("pixel_decoder", "reference")
    project = checkpoint.load_part(lambda: TextToVision(width, c, config.projector), "text2vision.")
    decoder = checkpoint.load_part(lambda: MaskDecoder(c, prototypes), "pixel_encoder.mask_decoder.")
    hidden = sequence.outputs["hidden_states"][0]
    mask = checks.pixel_decoder(project, decoder, hidden, picture.outputs, config)
    progress("pixel_decoder", "graph")
    writer.stage("pixel_decoder", vision.pixel_decoder(project, decoder, config), mask)


class LlmTensors(Mapping[str, np.ndarray]):
    """The language model's tensors under the names of :func:`build_llm`, read when they are asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        names = (name.removeprefix("llm.") for name in checkpoint if name.startswith("llm."))
        self._names = {n.removesuffix(".weight") for n in names if not n.startswith("tok_embeddings")}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return self._checkpoint.tensor(f"llm.{name}.weight").numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _context_length(config: LiraConfig, asked: int | None) -> int:
    longest = config.llm.max_position_embeddings
    length = asked or config.context_length or min(longest, DEFAULT_CONTEXT_LENGTH)
    least = config.tiles.min_num * config.vision.tokens_per_tile + config.pixel.grid**2
    if not least < length <= longest:
        raise LiraError(
            f"context length {length}: expected {least + 1} (an image fits) to {longest} (the positions that "
            "the model was trained for)"
        )
    return length


def _model_spec(config: LiraConfig, context_length: int) -> ModelSpec:
    llm, pixel = config.llm, config.pixel
    return ModelSpec(
        family=llm.family,
        hidden_size=llm.hidden_size,
        num_layers=llm.num_layers,
        num_heads=llm.num_heads,
        num_kv_heads=llm.num_kv_heads,
        head_dim=llm.head_dim,
        intermediate_size=llm.intermediate_size,
        vocab_size=llm.vocab_size,
        context_length=context_length,
        rope_theta=llm.rope_theta,
        rms_norm_eps=llm.rms_norm_eps,
        tile_size=config.vision.image_size,
        tokens_per_tile=config.vision.tokens_per_tile,
        pixel_size=pixel.image_size,
        num_queries=pixel.num_queries,
        num_cells=pixel.grid**2,
        feat_channels=pixel.feat_channels,
        mask_size=pixel.image_size // 4,
    )


def _provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    """Where the weights came from, without this machine's folders."""
    files = {}
    for role, paths in checkpoint.files.items():
        for path in paths:
            name = f"{checkpoint.base.name}/{path.name}" if role == "base" else path.name
            files[name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    return {
        "checkpoint_files": files,
        "lora": {"r": checkpoint.lora_rank, "alpha": checkpoint.lora_alpha},
        "notes": checkpoint.notes,
        "tools": {name: metadata.version(name) for name in _TOOLS},
    }
