"""Checkpoint to bundle: stage by stage, so that no more than one stage's weights are in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from tokenizers import Tokenizer
from torch import Tensor

from lira_engine.bundle.check_vectors import CheckVectors
from lira_engine.bundle.integrity import sha256_of
from lira_engine.bundle.manifest import ModelSpec, PreprocessingSpec, RegionSpec
from lira_engine.system.atomic import atomic_directory
from lira_engine.system.disk import check_disk

from . import checks
from .bundle_writer import BundleWriter, Progress, Report
from .checkpoint import Checkpoint
from .config import LiraConfig
from .graphs import vision
from .graphs.llm import build_llm, check_context_length
from .graphs.stored import ONNX_DTYPES, store_weights
from .model.lira import PixelEncoder
from .model.mask_decoder import MaskDecoder
from .model.projector import Projector, TextToVision
from .model.vit import SemanticEncoder
from .parts import BASE, PARTS
from .prompts import prompts_of
from .sources import CheckpointFiles
from .storage import Storage, storages
from .tokenizer import read_tokenizer, special_tokens

DEFAULT_CONTEXT_LENGTH = 4096
_EMBEDDINGS = "llm.tok_embeddings.weight"
REGION_BRIGHTNESS = 0.3  # upstream darkens what is outside of the mask by this factor
_TOOLS = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "tokenizers")


def export_checkpoint(
    checkpoint: Checkpoint | CheckpointFiles | str | Path,
    out: str | Path,
    *,
    config: LiraConfig | None = None,
    tokenizer: Tokenizer | None = None,
    context_length: int | None = None,
    dtypes: Mapping[str, str] | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress = lambda step: None,
) -> Path:
    """Write the bundle of a checkpoint to ``out``, whole or not at all, and return its path.

    Args:
        config: overrides what the checkpoint's folder says of itself.
        tokenizer: replaces the base model's tokenizer.json; LIRA's tokens are appended to it.
        context_length: slots of the KV cache; the checkpoint's own, or at most 4096, where it is None.
        dtypes: stage, or "all", -> "fp16", "bf16" or "fp32", in which its matrices are kept (arithmetic is
            fp32 in any case); fp16 unless the checkpoint is fp32.
        threads: of torch and of ONNX Runtime; one per core where it is None.
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
    kept = storages(dtypes or {}, checkpoint.stored_dtype)
    expected = _expected_bytes(checkpoint, kept)
    check_disk(Path(out), expected, "the bundle")
    if threads is not None:
        torch.set_num_threads(threads)
    with atomic_directory(out, overwrite=overwrite) as folder:
        writer = BundleWriter(folder, progress, expected, threads)
        _write_stages(writer, checkpoint, slots, kept)
        writer.tokenizer(tokenizer)
        writer.finish(
            name=config.name,
            lira_edge_version=metadata.version("lira-edge"),
            provenance=_provenance(checkpoint, kept),
            model=_model_spec(config, slots),
            preprocessing=PreprocessingSpec(config.tiles, config.pixels, RegionSpec(REGION_BRIGHTNESS)),
            tokens=tokens,
            prompts=prompts,
        )
    return Path(out)


def _write_stages(
    writer: BundleWriter, checkpoint: Checkpoint, slots: int, kept: Mapping[str, Storage]
) -> None:
    """Each stage: what the reference answers, the graph, and the graph's own answer against it."""
    config = checkpoint.config
    c, width, prototypes = config.pixel, config.llm.hidden_size, checkpoint.class_embed.shape[1]

    def semantic_encoder(report: Report) -> tuple[ir.Model, CheckVectors]:
        report("reference")
        make = partial(SemanticEncoder, config.vision, width)
        encoder = checkpoint.load_part(make, "semantic_encoder.", kept["semantic_encoder"])
        tiles = checks.semantic_encoder(encoder, config)
        report("graph")
        return vision.semantic_encoder(encoder, config), tiles

    def pixel_encoder(report: Report) -> tuple[ir.Model, CheckVectors]:
        report("reference")
        make = partial(PixelEncoder, config, prototypes)
        encoder = checkpoint.load_part(make, "pixel_encoder.", kept["pixel_encoder"])
        image = checks.pixel_encoder(encoder, config)
        report("graph")
        return vision.pixel_encoder(encoder, config), image

    def sefe(report: Report) -> tuple[ir.Model, CheckVectors]:
        report("reference")
        make = partial(Projector, c, config.projector, width)
        projector = checkpoint.load_part(make, "projector.", kept["sefe"])
        separators = projector.seperate_embed_internvl.weight, projector.seperate_embed.weight
        writer.array("separators", torch.cat(separators))
        fused = checks.sefe(projector, tiles.outputs["features"], image.outputs)
        report("graph")
        return vision.sefe(projector, config), fused

    def llm(report: Report) -> tuple[ir.Model, CheckVectors]:
        report("reference")
        tensors = LlmTensors(checkpoint, kept["llm"])
        table = writer.array("embeddings", tensors.embeddings())
        some = np.linspace(0, len(table) - 1, 12).astype(int)
        tokens = [fused.outputs[name][0, :4] for name in ("pixel_tokens", "query_tokens")]
        rows = [table[some].astype(np.float32), tiles.outputs["features"][0, :4], *tokens]
        sequence = checks.llm(checkpoint, rows, slots, kept["llm"])
        report("graph")
        return build_llm(config.llm, tensors, slots, tensors.dtype_of), sequence

    def pixel_decoder(report: Report) -> tuple[ir.Model, CheckVectors]:
        report("reference")
        storage = kept["pixel_decoder"]
        make = partial(TextToVision, width, c, config.projector)
        project = checkpoint.load_part(make, "text2vision.", storage)
        decoder = checkpoint.load_part(
            partial(MaskDecoder, c, prototypes), "pixel_encoder.mask_decoder.", storage
        )
        hidden = sequence.outputs["hidden_states"][0]
        mask = checks.pixel_decoder(project, decoder, hidden, image.outputs, config)
        report("graph")
        return vision.pixel_decoder(project, decoder, config), mask

    def stored(name: str, make: Callable[[Report], tuple[ir.Model, CheckVectors]]) -> CheckVectors:
        def make_stored(report: Report) -> tuple[ir.Model, CheckVectors]:
            graph, vectors = make(report)
            store_weights(graph, kept[name])
            return graph, vectors

        return writer.stage(name, make_stored)

    tiles = stored("semantic_encoder", semantic_encoder)
    image = stored("pixel_encoder", pixel_encoder)
    fused = stored("sefe", sefe)
    sequence = writer.stage("llm", llm)
    stored("pixel_decoder", pixel_decoder)


class LlmTensors(Mapping[str, np.ndarray]):
    """The language model's tensors under the names of :func:`build_llm`, read when they are asked for."""

    def __init__(self, checkpoint: Checkpoint, storage: Storage = Storage.EXACT) -> None:
        self._checkpoint = checkpoint
        self._storage = storage
        names = [name for name in checkpoint if name.startswith("llm.") and name != _EMBEDDINGS]
        self._names = {_graph_name(name): name for name in names}

    def __getitem__(self, name: str) -> np.ndarray:
        return self._fit(self._names[name]).numpy()

    def __contains__(self, name: object) -> bool:  # a Mapping's own would read the tensor
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def dtype_of(self, name: str) -> ir.DataType:
        """In which dtype a matrix is kept, which is known after it was read once."""
        exact = self._names[name] in self._storage.kept
        return ONNX_DTYPES[torch.float32 if exact else self._storage.dtype]

    def embeddings(self) -> Tensor:
        """The table of token embeddings [V,C] as it is kept: fp16, or fp32, for numpy has no bf16."""
        table = self._fit(_EMBEDDINGS)
        half = self._storage.dtype == torch.float16 and _EMBEDDINGS not in self._storage.kept
        return table.half() if half else table

    def _fit(self, name: str) -> Tensor:
        return self._storage.fit(name, self._checkpoint.tensor(name))


def _graph_name(parameter: str) -> str:
    """llm.layers.0.q.weight -> layers.0.q, llm.layers.0.q.bias -> layers.0.q_bias"""
    name = parameter.removeprefix("llm.")
    return name.removesuffix(".weight") if name.endswith(".weight") else name.removesuffix(".bias") + "_bias"


def _expected_bytes(checkpoint: Checkpoint, kept: Mapping[str, Storage]) -> int:
    """About how large the bundle will be: weights, and the check vectors of the two pixel stages."""
    c = checkpoint.config.pixel
    prefixes = {
        "semantic_encoder": ["semantic_encoder."],
        "pixel_encoder": ["pixel_encoder."],
        "sefe": ["projector."],
        "llm": ["llm."],
        "pixel_decoder": ["text2vision.", "pixel_encoder.mask_decoder."],
    }
    weights = sum(
        storage.dtype.itemsize * sum(map(checkpoint.parameters, prefixes[stage]))
        for stage, storage in kept.items()
    )
    pixels = sum(1 / 4**level for level in (2, 3, 4, 5))  # at strides 4 to 32
    features = (
        2 * c.feat_channels * (2 * pixels - 1 / 16)
    )  # mask features once, the others twice, in two files
    return int(1.02 * weights + 4 * c.image_size**2 * (features + 3)) + (16 << 20)


def _context_length(config: LiraConfig, asked: int | None) -> int:
    most = DEFAULT_CONTEXT_LENGTH
    length = asked or config.context_length or min(config.llm.max_position_embeddings, most)
    image = config.tiles.min_num * config.vision.tokens_per_tile + config.pixel.grid**2
    check_context_length(config.llm, length, least=image + 1)
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


def _provenance(checkpoint: Checkpoint, kept: Mapping[str, Storage]) -> dict[str, Any]:
    """Where the weights came from, without this machine's folders."""
    files = {}
    for role in (*PARTS, BASE):
        for path in checkpoint.paths(role):
            name = f"{checkpoint.base.name}/{path.name}" if role == BASE else path.name
            files[name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    origins = checkpoint.files.origins
    return {
        "checkpoint_files": files,
        "hub": {role: {**vars(origin), "files": list(origin.files)} for role, origin in origins.items()},
        "lora": {"r": checkpoint.lora_rank, "alpha": checkpoint.lora_alpha, "scale": checkpoint.lora_scale},
        "synthetic": checkpoint.config.synthetic,
        "weights": {
            stage: {"dtype": str(storage.dtype).removeprefix("torch."), "kept_fp32": storage.kept}
            for stage, storage in kept.items()
        },
        "notes": checkpoint.notes,
        "tools": {name: metadata.version(name) for name in _TOOLS},
    }
