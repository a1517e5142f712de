"""A target that computes one stage in NumPy, and leaves the others to the CPU's.

Its engine is an ONNX file whose weights are rounded to a few digits, run by ONNX's reference implementation.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common

from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.accuracy import check_stage_outputs
from lira_engine.engines.builder import BuiltStage, Progress, StageBuilder
from lira_engine.engines.options import Options, option
from lira_engine.engines.runner import Feeds, LlmRunner, Stage, StageRunner, check_feeds, host_array
from lira_engine.engines.target import Opener, Readiness, Target
from lira_engine.targets import TARGETS

OWN = "pixel_decoder"
"""The stage that it computes itself: the smallest one of lira-nano."""


@dataclass(frozen=True)
class ToyOptions(Options):
    digits: int = option(6, "decimal digits that weights keep", (1, 6))


@dataclass(frozen=True)
class ToyRun:
    outputs: dict[str, np.ndarray]

    def numpy(self, name: str) -> np.ndarray:
        return self.outputs[name]


class ToyStage(Stage):
    """Runs the file when it is asked. Counts its passes."""

    passes = 0

    def __init__(self, bundle: Bundle, name: str, file: Path) -> None:
        spec = bundle.manifest.stages[name]
        self.name, self.input_specs, self.output_specs = name, spec.inputs, spec.outputs
        self._evaluator = ReferenceEvaluator(onnx.load(file))

    def start(self, feeds: Feeds) -> ToyRun:
        check_feeds(self.name, self.input_specs, feeds)
        arrays = {name: host_array(_on_host(tensor)) for name, tensor in feeds.items()}
        ToyStage.passes += 1
        found = self._evaluator.run(list(self.output_specs), arrays)
        return ToyRun(dict(zip(self.output_specs, found, strict=True)))

    def close(self) -> None:
        self._evaluator = None


def _on_host(tensor: Any) -> Any:
    """The CPU's stages leave tensors of ONNX Runtime."""
    return tensor.value.numpy() if hasattr(tensor, "value") else tensor


@dataclass(frozen=True)
class ToyOpener:
    bundle: Bundle
    cpu: Opener
    cuda_calls = ""
    maps_files = True

    @property
    def draft_costs(self) -> tuple[float, ...]:
        return self.cpu.draft_costs

    @property
    def tiles_at_once(self) -> int:
        return self.cpu.tiles_at_once

    def stage(self, name: str, file: Path) -> StageRunner:
        return ToyStage(self.bundle, name, file) if name == OWN else self.cpu.stage(name, file)

    def llm(self, file: Path) -> LlmRunner:
        return self.cpu.llm(file)


@dataclass(frozen=True)
class ToyBuilder:
    bundle: Bundle
    target: Target
    cpu: StageBuilder
    digits: int
    progress: Progress

    def stage(self, stage: str, folder: Path) -> BuiltStage:
        if stage != OWN:
            return self.cpu.stage(stage, folder)
        started = time.perf_counter()
        model = common.InlinePass()(ir.load(self.bundle.stage_file(stage))).model
        for name, value in model.graph.initializers.items():
            assert value.const_value is not None
            array = value.const_value.numpy()
            if np.issubdtype(array.dtype, np.floating):
                rounded = np.round(array.astype(np.float32), self.digits).astype(array.dtype)
                value.const_value = ir.tensor(rounded, name=name)
        file = folder / self.target.file(stage)
        ir.save(model, file)
        vectors = self.bundle.check_vectors(stage)
        with ToyStage(self.bundle, stage, file) as runner:
            found = runner.run(vectors.inputs)
        errors = {}
        if self.digits > 1:
            errors = check_stage_outputs("the toy", "fp32", found, vectors).errors
        self.progress(stage, "done")
        return BuiltStage("fp32", errors, time.perf_counter() - started)


class ToyTarget(Target):
    """All that a target has to say."""

    name = "toy"
    title = "NumPy"
    precisions = ("fp32",)
    options = ToyOptions
    extra = "cpu"
    runtimes = ("numpy",)
    sources = (Path(__file__),)

    def file(self, stage: str) -> str:
        return f"{stage}.toy" if stage == OWN else TARGETS["cpu"].file(stage)

    def builder(
        self, bundle: Bundle, precision: str, options: Options, threads: int | None, progress: Progress
    ) -> StageBuilder:
        assert isinstance(options, ToyOptions)
        cpu = TARGETS["cpu"]
        others = cpu.builder(bundle, precision, cpu.options(), threads, progress)
        return ToyBuilder(bundle, self, others, options.digits, progress)

    def opener(
        self, bundle: Bundle, precision: str, options: Mapping[str, Any], threads: int | None
    ) -> Opener:
        return ToyOpener(bundle, TARGETS["cpu"].opener(bundle, precision, {}, threads))

    def check_runtime(self) -> None:
        pass

    def readiness(self) -> Readiness:
        return Readiness(self.name, "yes", "NumPy is always there")
