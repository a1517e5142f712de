"""Build stages for ONNX Runtime on an NVIDIA GPU, and check on it their outputs and execution providers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.external_data import save_graph
from lira_engine.bundle.graphs import read_graph
from lira_engine.bundle.manifest import MAX_TILES
from lira_engine.engines import lowered_outputs
from lira_engine.engines.accuracy import Checked, check_stage_outputs, worst
from lira_engine.engines.builder import BuiltStage, Progress
from lira_engine.engines.llm_tensors import is_cache
from lira_engine.engines.precision import MIXED
from lira_engine.engines.recipe import Recipe
from lira_engine.engines.replay import run_llm, run_stage
from lira_engine.engines.target import Target
from lira_engine.errors import OutOfMemory
from lira_engine.lowering.cuda import cuda_pipeline
from lira_engine.lowering.nodes import CONTRIB, nodes_of
from lira_engine.lowering.passes.use_mixed_precision import kept_in_fp32
from lira_engine.lowering.pipeline import Pass, apply
from lira_engine.lowering.quantization import Quantization
from lira_engine.ort import lowered_reference
from lira_engine.ort.device import Device
from lira_engine.ort.opening import OrtOpener
from lira_engine.ort.options import CudaOptions
from lira_engine.ort.package import onnxruntime, version
from lira_engine.ort.placement import Placement, check_placement, placement_of_run
from lira_engine.ort.step_graph import NotCaptured

FUSED_INT4_FROM = (1, 31)
"""The ONNX Runtime whose kernels were counted with `Device.fuses_int4`."""


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
        checked = self._checked_llm if stage == "llm" else self._checked
        built = checked(stage, precision, file)
        checked_placement(self.bundle, stage, file, precision, self.opener.device)
        self.progress(stage, "done")
        return replace(built, seconds=round(time.perf_counter() - started, 3), kept_fp32=kept)

    def _write(self, stage: str, precision: str, file: Path) -> tuple[str, ...]:
        """Write the engine file; return the names of the weights that do not fit into fp16."""
        self.progress(stage, "lower")
        model = apply(read_graph(self.bundle.stage_file(stage)), self._passes(stage, precision))
        self.progress(stage, "write")
        save_graph(model, file)
        return kept_in_fp32(model)

    def _passes(self, stage: str, precision: str) -> Sequence[Pass]:
        provider = self.options.provider
        if precision == MIXED and self.recipe is not None:
            return cuda_pipeline(stage, precision, provider, recipe=self.recipe.stage(stage))
        quantization = Quantization(self.options.block_size, self.options.lm_head_bits)
        return cuda_pipeline(stage, precision, provider, quantization)

    def _checked(self, stage: str, precision: str, file: Path) -> BuiltStage:
        """Check the engine's outputs, of the semantic encoder also those of as many tiles as it will take."""
        with self.opener.stage(stage, file) as runner:

            def checked(tiles: int = 1) -> Checked:
                feeds = self.bundle.check_vectors(stage).inputs
                return self._compared(stage, precision, file, run_stage(runner, feeds, tiles))

            found = checked()
            if stage != "semantic_encoder":
                return BuiltStage(precision, found.errors, 0.0, flips=found.flips)
            tiles, said = self._tiles()
            if tiles > 1:
                try:
                    found = worst(found, checked(tiles))
                except OutOfMemory:
                    tiles, said = 1, f"one tile a pass: {tiles} take more memory than the GPU has free"
            return BuiltStage(precision, found.errors, 0.0, chosen={"tiles": tiles}, said=(said,))

    def _tiles(self) -> tuple[int, str]:
        """Return how many tiles the semantic encoder may read in a pass, and a line about it."""
        if self.options.tiles == "one":
            return 1, "one tile a pass, as asked"
        if self.options.provider != "cuda":
            return 1, f"one tile a pass: provider {self.options.provider} compiles for each number of tiles"
        return MAX_TILES + 1, f"up to {MAX_TILES + 1} tiles a pass"  # with the thumbnail

    def _checked_llm(self, stage: str, precision: str, file: Path) -> BuiltStage:
        """Check the language model's outputs, with captured decode steps if ONNX Runtime can capture them."""
        vectors = self.bundle.check_vectors(stage)
        opener = replace(
            self.opener,
            device=replace(self.opener.device, fuses_int4=self.options.int4_passes == "fuse"),
        )

        def errors(captures: bool) -> dict[str, float]:
            with replace(opener, device=replace(opener.device, captures=captures)).llm(file) as llm:
                return self._compared(stage, precision, file, run_llm(llm, vectors)).errors

        if self.options.step_graph == "off":
            found, step, said = errors(False), "off", "decode steps are no CUDA graphs, as asked"
        else:
            try:
                found, step, said = errors(True), "on", "decode steps are CUDA graphs"
            except NotCaptured as error:
                found, step = errors(False), "off"
                who = f"ONNX Runtime {onnxruntime.__version__}"
                said = f"decode steps are no CUDA graphs: {who} says: {error.reason}"
        lines = (said, fused_int4(file)) if opener.device.fuses_int4 else (said,)
        return BuiltStage(precision, found, 0.0, chosen={"step_graph": step}, said=lines)

    def _compared(self, stage: str, precision: str, file: Path, found: dict[str, np.ndarray]) -> Checked:
        """Compare outputs on the check vectors with the recorded ones. Raises LiraError for wrong ones."""
        vectors = self.bundle.check_vectors(stage)
        what = f"the {self.target.name} engine of {stage}"
        checked = check_stage_outputs(what, precision, found, vectors)
        if precision == MIXED and (file.parent / lowered_outputs.file_name(stage)).exists():
            lowered_outputs.check(what, found, lowered_outputs.read(file.parent, stage))
        return checked


def fused_int4(file: Path) -> str:
    """Return a line about how many int4 matmuls of a graph ONNX Runtime fuses with unpacking their weights.

    It says nothing itself: the others run as without. Its conditions are in its source
    (contrib_ops/cuda/quantization/matmul_nbits.cc): compute capability 7.5, fp16, and those below, as its
    wheels are built.
    """
    if version() < FUSED_INT4_FROM:
        expected = ".".join(map(str, FUSED_INT4_FROM))
        return f"int4 matmuls may be dequantized: fusing them is known of ONNX Runtime {expected} and newer"
    nodes = nodes_of(ir.load(file), "MatMulNBits", domain=CONTRIB)
    sizes = [[node.attributes[key].as_int() for key in ("N", "K", "block_size")] for node in nodes]
    fused = sum(outputs % 64 == 0 and inputs % 32 == 0 and block == 32 for outputs, inputs, block in sizes)
    others = (
        "" if fused == len(nodes) else "; the others have blocks other than 32, or outputs no multiple of 64"
    )
    return f"{fused} of {len(nodes)} int4 matmuls are fused{others}"


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
