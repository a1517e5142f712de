"""The five stages of a bundle, in the order in which data passes them.

Each function answers with the torch reference first (its check vectors), then writes the graph. A later stage
runs on what the reference made of the earlier ones. Weights of one stage at a time are in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import onnx_ir as ir
import torch

from lira_engine.bundle.check_vectors import CheckVectors

from . import checks
from .bundle_plan import TABLE_ROWS, VISUAL_ROWS
from .bundle_writer import BundleWriter, Report
from .checkpoint import Checkpoint
from .graphs import vision
from .graphs.llm import build_llm
from .graphs.stored import store_weights
from .llm_tensors import LlmTensors
from .model.lira import PixelEncoder
from .model.mask_decoder import MaskDecoder
from .model.projector import Projector, TextToVision
from .model.vit import SemanticEncoder
from .storage import Storage

Made = tuple[ir.Model, CheckVectors]
_SEPARATORS = ("projector.seperate_embed_internvl.weight", "projector.seperate_embed.weight")


def write_stages(
    writer: BundleWriter, checkpoint: Checkpoint, context_length: int, kept: Mapping[str, Storage]
) -> None:
    """Write graphs, check vectors, separators and embeddings; each graph is checked before the next begins.

    Raises:
        LiraError: a graph does not do what the reference does.
    """
    tiles = writer.stage(
        "semantic_encoder", partial(_semantic_encoder, checkpoint, kept["semantic_encoder"])
    ).outputs["features"]
    image = writer.stage("pixel_encoder", partial(_pixel_encoder, checkpoint, kept["pixel_encoder"])).outputs
    fused = writer.stage("sefe", partial(_sefe, checkpoint, kept["sefe"], tiles, image)).outputs
    writer.array("separators", torch.cat([kept["sefe"].fit(n, checkpoint.tensor(n)) for n in _SEPARATORS]))
    tensors = LlmTensors(checkpoint, kept["llm"])
    table = writer.array("embeddings", tensors.embeddings())
    rows = _llm_rows(table, tiles, fused["pixel_tokens"], fused["query_tokens"])
    sequence = writer.stage("llm", partial(_llm, checkpoint, kept["llm"], tensors, rows, context_length))
    hidden = sequence.outputs["hidden_states"][0]
    writer.stage("pixel_decoder", partial(_pixel_decoder, checkpoint, kept["pixel_decoder"], hidden, image))


def _semantic_encoder(checkpoint: Checkpoint, storage: Storage, report: Report) -> Made:
    config = checkpoint.config
    report("reference")
    make = partial(SemanticEncoder, config.vision, config.llm.hidden_size)
    encoder = checkpoint.load_part(make, "semantic_encoder.", storage)
    vectors = checks.semantic_encoder(encoder, config)
    report("graph")
    return _stored(vision.semantic_encoder(encoder, config), storage), vectors


def _pixel_encoder(checkpoint: Checkpoint, storage: Storage, report: Report) -> Made:
    config = checkpoint.config
    report("reference")
    make = partial(PixelEncoder, config, checkpoint.class_embed.shape[1])
    encoder = checkpoint.load_part(make, "pixel_encoder.", storage)
    vectors = checks.pixel_encoder(encoder, config)
    report("graph")
    return _stored(vision.pixel_encoder(encoder, config), storage), vectors


def _sefe(
    checkpoint: Checkpoint, storage: Storage, features: np.ndarray, image: checks.Arrays, report: Report
) -> Made:
    config = checkpoint.config
    report("reference")
    make = partial(Projector, config.pixel, config.projector, config.llm.hidden_size)
    projector = checkpoint.load_part(make, "projector.", storage)
    vectors = checks.sefe(projector, features, image)
    report("graph")
    return _stored(vision.sefe(projector, config), storage), vectors


def _llm_rows(table: np.ndarray, *visual: np.ndarray) -> np.ndarray:
    """Return embeddings [S,C]: some of the table's rows [V,C], then the first of each ``visual`` [1,n,C]."""
    some = np.linspace(0, len(table) - 1, TABLE_ROWS).astype(int)
    return np.concatenate([table[some].astype(np.float32), *(array[0, :VISUAL_ROWS] for array in visual)])


def _llm(
    checkpoint: Checkpoint,
    storage: Storage,
    tensors: LlmTensors,
    rows: np.ndarray,
    context_length: int,
    report: Report,
) -> Made:
    report("reference")
    vectors = checks.llm(checkpoint, rows, context_length, storage)
    report("graph")
    return build_llm(checkpoint.config.llm, tensors, context_length, tensors.dtype_of), vectors


def _pixel_decoder(
    checkpoint: Checkpoint, storage: Storage, hidden: np.ndarray, image: checks.Arrays, report: Report
) -> Made:
    config = checkpoint.config
    report("reference")
    make_project = partial(TextToVision, config.llm.hidden_size, config.pixel, config.projector)
    project = checkpoint.load_part(make_project, "text2vision.", storage)
    make_decoder = partial(MaskDecoder, config.pixel, checkpoint.class_embed.shape[1])
    decoder = checkpoint.load_part(make_decoder, "pixel_encoder.mask_decoder.", storage)
    vectors = checks.pixel_decoder(project, decoder, hidden, image, config)
    report("graph")
    return _stored(vision.pixel_decoder(project, decoder, config), storage), vectors


def _stored(graph: ir.Model, storage: Storage) -> ir.Model:
    store_weights(graph, storage)
    return graph
