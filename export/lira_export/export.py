"""Write the bundle of a checkpoint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from lira_engine.bundle.integrity import sha256_of
from lira_engine.bundle.manifest import MANIFEST_NAME, Manifest, ModelSpec, PreprocessingSpec, RegionSpec
from lira_engine.system.atomic import atomic_directory
from lira_engine.system.disk import check_disk
from lira_engine.system.extras import onnxruntimes, versions
from lira_engine.trust.signer import Signer, sign_folder

from .bundle_plan import plan_bundle
from .bundle_writer import BundleWriter, Progress
from .checkpoint import Checkpoint
from .config import LiraConfig
from .parts import BASE, PARTS
from .plan import DURATIONS, ExportPlan
from .sources import CheckpointFiles
from .stages import write_stages
from .storage import Storage, storages
from .tokenizer import read_tokenizer

REGION_BRIGHTNESS = 0.3  # upstream darkens what lies outside a mask by this factor


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
    signer: Signer | None = None,
) -> Path:
    """Write the bundle of a checkpoint to ``out``, whole or not at all, and return its path.

    Args:
        config: replaces the configuration in the checkpoint's folder.
        tokenizer: replaces the base model's; LIRA's tokens are appended to it, in place.
        context_length: slots of the KV cache. None: the checkpoint's own, or at most 4096.
        dtypes: stage, or "all", -> "fp16", "bf16" or "fp32", in which matrices are kept; the graphs compute
            in fp32. Without it: fp32 for a checkpoint in fp32, else fp16.
        threads: of torch and of ONNX Runtime. None: one per core.
        overwrite: replace an existing bundle. signer: signs the bundle.

    Raises:
        LiraError: the checkpoint is not one, ``out`` exists, or a graph does not do what the reference does.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.open(checkpoint, config)
    config = checkpoint.config
    tokenizer = tokenizer or read_tokenizer(checkpoint.base)
    plan = plan_bundle(config, tokenizer, context_length, dtypes, checkpoint.stored_dtype)
    check_disk(Path(out), plan.bytes, "the bundle")
    kept = storages(plan.dtypes)
    if threads is not None:
        torch.set_num_threads(threads)
    with atomic_directory(out, overwrite=overwrite) as folder:
        writer = BundleWriter(folder, progress, plan.bytes, threads)
        write_stages(writer, checkpoint, plan.context_length, kept)
        writer.tokenizer(tokenizer)
        writer.finish(
            name=config.name,
            lira_edge_version=metadata.version("lira-edge"),
            provenance=_provenance(checkpoint, kept),
            model=_model_spec(config, plan.context_length),
            preprocessing=PreprocessingSpec(config.tiles, config.pixels, RegionSpec(REGION_BRIGHTNESS)),
            tokens=plan.tokens,
            prompts=plan.prompts,
        )
        if signer is not None:
            record = folder / MANIFEST_NAME
            files = {name: entry.sha256 for name, entry in Manifest.load(record).files.items()}
            sign_folder(signer, folder, config.name, files | {MANIFEST_NAME: sha256_of(record)})
    return Path(out)


def export_planned(
    plan: ExportPlan, progress: Progress = lambda step: None, signer: Signer | None = None
) -> Path:
    """Do what a plan says: download what is not here, then :func:`export_checkpoint`.

    Raises:
        LiraError: see :func:`export_checkpoint` and :func:`lira_export.hub.download`.
    """
    request, started = plan.request, time.monotonic()
    written = export_checkpoint(
        plan.sources.fetch(),
        request.output,
        context_length=request.context_length,
        dtypes=request.dtypes,
        threads=request.threads,
        overwrite=request.overwrite,
        progress=progress,
        signer=signer,
    )
    DURATIONS.keep(plan.key, time.monotonic() - started)
    return written


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
    """Return where the weights came from; no folder of this machine is in it."""
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
        "tools": versions("torch", "onnx", "onnx-ir", "onnxscript", *onnxruntimes(), "tokenizers"),
    }
