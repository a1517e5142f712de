"""Build stages for ONNX Runtime on an NVIDIA GPU, and check on it their outputs and execution providers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.external_data import save_graph
from lira_engine.engines import lowered_outputs
from lira_engine.engines.accuracy import Checked, check_stage_outputs
from lira_engine.engines.builder import BuiltStage, Progress
from lira_engine.engines.llm_tensors import is_cache
from lira_engine.engines.precision import MIXED
from lira_engine.engines.recipe import Recipe
from lira_engine.engines.replay import run_llm, run_stage
from lira_engine.engines.target import Target
from lira_engine.lowering.cuda import cuda_pipeline
from lira_engine.lowering.passes.use_mixed_precision import kept_in_fp32
from lira_engine.lowering.pipeline import Pass, apply
from lira_engine.lowering.quantization import Quantization
from lira_engine.ort import lowered_reference
from lira_engine.ort.device import Device
from lira_engine.ort.opening import OrtOpener
from lira_engine.ort.options import CudaOptions
from lira_engine.ort.placement import Placement, check_placement, placement_of_run


@dataclass(frozen=True)
class CudaBuilder:
    """Lowers a stage for ONNX Runtime on a GPU, writes it into a folder and checks it there."""

    opener: OrtOpener
    target: Target
    precision: str
    options: CudaOptions
    progress: Progress
    recipe: Recipe | None = None

    @property
    def bundle(self) -> Bundle:
        return self.opener.bundle

    def stage(self, stage: str, folder: Path) -> BuiltStage:
        started = time.perf_counter()
        part = None if self.recipe is None else self.recipe.stage(stage)
        precision = self.target.stage_precision(self.precision, stage, part)
        file = folder / self.target.file(stage)
        kept = self._write(stage, precision, file)
        if precision == MIXED:
            self.progress(stage, "expect")
            lowered_reference.record_in_process(self.bundle, file, precision, folder, stage)
        self.progress(stage, "check")
        checked = self._check(stage, precision, file)
        checked_placement(self.bundle, stage, file, precision, self.opener.device)
        self.progress(stage, "done")
        seconds = round(time.perf_counter() - started, 3)
        return BuiltStage(precision, checked.errors, seconds, kept_fp32=kept, flips=checked.flips)

    def _write(self, stage: str, precision: str, file: Path) -> tuple[str, ...]:
        """Write the engine file; return the names of the weights that do not fit into fp16."""
        self.progress(stage, "lower")
        model = apply(ir.load(self.bundle.stage_file(stage)), self._passes(stage, precision))
        self.progress(stage, "write")
        save_graph(model, file)
        return kept_in_fp32(model)

    def _passes(self, stage: str, precision: str) -> Sequence[Pass]:
        provider = self.options.provider
        if precision == MIXED and self.recipe is not None:
            return cuda_pipeline(stage, precision, provider, recipe=self.recipe.stage(stage))
        quantization = Quantization(self.options.block_size, self.options.lm_head_bits)
        return cuda_pipeline(stage, precision, provider, quantization)

    def _check(self, stage: str, precision: str, file: Path) -> Checked:
        """Run the engine on the check vectors and check each output."""
        vectors = self.bundle.check_vectors(stage)
        if stage == "llm":
            with self.opener.llm(file) as llm:
                found = run_llm(llm, vectors)
        else:
            with self.opener.stage(stage, file) as runner:
                found = run_stage(runner, vectors.inputs)
        what = f"the {self.target.name} engine of {stage}"
        checked = check_stage_outputs(what, precision, found, vectors)
        if precision == MIXED and (file.parent / lowered_outputs.file_name(stage)).exists():
            lowered_outputs.check(what, found, lowered_outputs.read(file.parent, stage))
        return checked


def checked_placement(bundle: Bundle, stage: str, file: Path, precision: str, device: Device) -> Placement:
    """Return which execution providers run the nodes of a stage's file. Raises LiraError as
    `check_placement` does."""
    if stage == "llm":
        device = device.for_cache
    found = placement_of_run(file, device, _feeds(bundle, stage, precision))
    check_placement(stage, found, device)
    return found


def _feeds(bundle: Bundle, stage: str, precision: str) -> dict[str, np.ndarray]:
    """Return a stage's recorded inputs, with empty caches of the language model, which may lack them."""
    feeds = dict(bundle.check_vectors(stage).inputs)
    for name, spec in bundle.manifest.stages[stage].inputs.items():
        if is_cache(name):
            shape = [size for size in spec.shape if isinstance(size, int)]
            feeds[name] = np.zeros(shape, np.float32 if precision == "fp32" else np.float16)
    return feeds
