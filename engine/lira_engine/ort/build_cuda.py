"""Stages built for ONNX Runtime on an NVIDIA GPU, and checked on it: outputs, and which provider ran what."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.external_data import save_graph
from lira_engine.engines.accuracy import check_outputs
from lira_engine.engines.builder import BuiltStage, Progress, gpu_bytes, gpu_precision
from lira_engine.engines.llm_tensors import is_cache
from lira_engine.engines.options import CudaOptions, recorded_options
from lira_engine.engines.record import engine_file, tool_versions
from lira_engine.lowering.cuda import cuda_pipeline
from lira_engine.lowering.passes.use_mixed_precision import kept_in_fp32
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.quantization import Quantization
from lira_engine.ort.device import Device, cuda_device
from lira_engine.ort.llm import open_llm
from lira_engine.ort.placement import Placement, check_placement, placement_of_run
from lira_engine.ort.session import OrtStage


class CudaBuilder:
    """Builds for "cuda". Raises LiraError where this ONNX Runtime lacks the provider."""

    def __init__(
        self, bundle: Bundle, precision: str, options: CudaOptions, threads: int | None, progress: Progress
    ) -> None:
        self.bundle, self.precision, self.options = bundle, precision, options
        self.threads, self.progress = threads, progress
        self.device = device_of(asdict(options))

    @property
    def recorded(self) -> dict[str, Any]:
        return recorded_options("cuda", self.precision, self.options)

    def machine(self) -> dict[str, str]:
        return {"system": platform.system(), "arch": platform.machine()}

    def tools(self) -> dict[str, str]:
        return tool_versions()

    def expected_bytes(self, portable: Mapping[str, int]) -> int:
        return sum(gpu_bytes(self.precision, portable))

    def stage(self, stage: str, folder: Path) -> BuiltStage:
        started = time.perf_counter()
        precision = gpu_precision(self.precision, stage)
        file = folder / engine_file("cuda", stage)
        kept = self._write(stage, precision, file)
        self.progress(stage, "check")
        errors = self._check(stage, precision, file)
        checked_placement(self.bundle, stage, file, precision, self.device)
        self.progress(stage, "done")
        seconds = round(time.perf_counter() - started, 3)
        return BuiltStage(precision, errors, seconds, kept_fp32=kept)

    def _write(self, stage: str, precision: str, file: Path) -> tuple[str, ...]:
        """The engine file; the weights that do not fit into fp16."""
        self.progress(stage, "lower")
        quantization = Quantization(self.options.block_size, self.options.lm_head_bits)
        passes = cuda_pipeline(stage, precision, self.options.provider, quantization)
        model = apply(ir.load(self.bundle.stage_file(stage)), passes)
        self.progress(stage, "write")
        save_graph(model, file)
        return kept_in_fp32(model)

    def _check(self, stage: str, precision: str, file: Path) -> dict[str, float]:
        from lira_engine.engines.replay import run_llm, run_stage

        manifest, vectors = self.bundle.manifest, self.bundle.check_vectors(stage)
        if stage == "llm":
            with open_llm(file, manifest.model, "cuda", self.threads, self.device) as llm:
                found = run_llm(llm, vectors)
        else:
            spec = manifest.stages[stage]
            with OrtStage(stage, file, spec, self.threads, device=self.device) as runner:
                found = run_stage(runner, vectors.inputs)
        return check_outputs(f"the cuda engine of {stage}", precision, found, vectors.outputs, vectors.noise)


def device_of(options: Mapping[str, Any]) -> Device:
    """The device that build options name. Raises LiraError where it is not there."""
    return cuda_device(options["provider"], options["allow_fallback"])


def checked_placement(bundle: Bundle, stage: str, file: Path, precision: str, device: Device) -> Placement:
    """Where the nodes of a stage's file run. Raises LiraError where that is not where they should."""
    if stage == "llm":
        device = device.for_cache
    found = placement_of_run(file, device, _feeds(bundle, stage, precision))
    check_placement(stage, found, device)
    return found


def _feeds(bundle: Bundle, stage: str, precision: str) -> dict[str, np.ndarray]:
    """A stage's check vectors; of the language model with an empty cache, which they need not hold."""
    feeds = dict(bundle.check_vectors(stage).inputs)
    for name, spec in bundle.manifest.stages[stage].inputs.items():
        if is_cache(name):
            shape = [size for size in spec.shape if isinstance(size, int)]
            feeds[name] = np.zeros(shape, np.float32 if precision == "fp32" else np.float16)
    return feeds
