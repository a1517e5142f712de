"""Stages built for ONNX Runtime: standard graphs with its own operators, checked on the check vectors."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.external_data import save_graph
from lira_engine.engines.accuracy import check_outputs
from lira_engine.engines.builder import BuiltStage, Progress
from lira_engine.engines.options import OrtOptions, recorded_options
from lira_engine.engines.record import engine_file, tool_versions
from lira_engine.engines.replay import run_llm
from lira_engine.errors import LiraError, OutOfMemory
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.quantization import Quantization
from lira_engine.open import open_llm, open_stage

_TIMED_RUNS = 3
WORTHWHILE = 1.1
"""Speedup from which on int8 is taken."""


@dataclass(frozen=True)
class OrtBuilder:
    """Lowers a stage for ONNX Runtime, writes it into a folder and checks it."""

    bundle: Bundle
    target: str
    precision: str
    options: OrtOptions
    threads: int | None
    progress: Progress

    @property
    def recorded(self) -> dict[str, Any]:
        return recorded_options(self.target, self.precision, self.options)

    def machine(self) -> dict[str, str]:
        return {"system": platform.system(), "arch": platform.machine()}

    def tools(self) -> dict[str, str]:
        return tool_versions()

    def expected_bytes(self, portable: Mapping[str, int]) -> int:
        """Weights in fp32, and those of a quantized language model in their bits."""
        share = {"fp32": 2.2, "int8": 0.7, "int4": 0.4}[self.precision]
        others = 2.2 if self.precision == "fp32" else 3.0
        return sum(int(size * (share if stage == "llm" else others)) for stage, size in portable.items())

    def stage(self, stage: str, folder: Path) -> BuiltStage:
        started = time.perf_counter()
        if stage == "llm" or self.precision == "fp32":
            precision, speedup = self.precision, None
            errors = self.write(stage, precision, folder)
        elif self.options.encoders == "auto":
            precision, errors, speedup = self.faster(stage, folder)
        else:
            precision, speedup = self.options.encoders, None
            errors = self.write(stage, precision, folder)
        self.progress(stage, "done")
        return BuiltStage(precision, errors, round(time.perf_counter() - started, 3), speedup)

    def write(self, stage: str, precision: str, folder: Path) -> dict[str, float]:
        """One engine file, checked; its errors."""
        self.progress(stage, "lower")
        quantization = Quantization(self.options.block_size, self.options.lm_head_bits)
        passes = cpu_pipeline(stage, precision, quantization)
        model = apply(ir.load(self.bundle.stage_file(stage)), passes)
        self.progress(stage, "write")
        file = folder / engine_file(self.target, stage)
        save_graph(model, file)
        del model
        self.progress(stage, "check")
        return check_stage(self.bundle, stage, file, self.target, precision, self.threads)

    def faster(self, stage: str, folder: Path) -> tuple[str, dict[str, float], float | None]:
        """The faster one of fp32 and an accepted int8, in `folder`."""
        folders = {precision: folder / precision for precision in ("fp32", "int8")}
        for one in folders.values():
            one.mkdir()
        errors = {"fp32": self.write(stage, "fp32", folders["fp32"])}
        speedup, chosen = None, "fp32"
        try:
            errors["int8"] = self.write(stage, "int8", folders["int8"])
        except OutOfMemory:
            raise
        except LiraError:
            pass  # not accurate enough: fp32, as build.json says
        else:
            speedup = self.time_against(stage, folders["fp32"], folders["int8"])
            chosen = "int8" if speedup >= WORTHWHILE else "fp32"
        for file in folders[chosen].iterdir():
            file.rename(folder / file.name)
        for precision, one in folders.items():
            for file in one.iterdir():
                file.unlink()
            folders[precision].rmdir()
        return chosen, errors[chosen], speedup

    def time_against(self, stage: str, before: Path, after: Path) -> float:
        """How much faster the file in `after` is; the best of interleaved runs."""
        self.progress(stage, "time")
        inputs = self.bundle.check_vectors(stage).inputs
        best = [float("inf")] * 2
        files = [folder / engine_file(self.target, stage) for folder in (before, after)]
        with (
            open_stage(self.bundle, stage, files[0], self.threads) as first,
            open_stage(self.bundle, stage, files[1], self.threads) as second,
        ):
            for _ in range(_TIMED_RUNS):
                for i, runner in enumerate((first, second)):
                    started = time.perf_counter()
                    runner.run(inputs)
                    best[i] = min(best[i], time.perf_counter() - started)
        return round(best[0] / best[1], 3)


def check_stage(
    bundle: Bundle, stage: str, file: Path, target: str, precision: str, threads: int | None = None
) -> dict[str, float]:
    """Run a stage's file on the bundle's check vectors and return each output's error.

    Raises LiraError where one is not accepted (see `check_outputs`). The language model is run as a plain
    graph, its whole cache in and out, where the check vectors hold the cache; and with its runner's cache
    where they begin at position 0.
    """
    vectors = bundle.check_vectors(stage)
    errors: dict[str, float] = {}

    def check(found: Mapping[str, np.ndarray]) -> None:
        what = f"the {target} engine of {stage}"
        try:
            new = check_outputs(what, precision, found, vectors.outputs, vectors.noise)
        except LiraError as error:
            raise LiraError(
                f"{error}; nothing was kept. Report this with the output of `lira-edge doctor`"
            ) from None
        for output, size in new.items():
            errors[output] = max(size, errors.get(output, 0.0))

    if vectors.inputs.keys() == bundle.manifest.stages[stage].inputs.keys():
        with open_stage(bundle, stage, file, threads) as runner:
            check(runner.run(vectors.inputs))
    if stage == "llm" and not vectors.inputs["position"].any():
        with open_llm(bundle, file, target, threads) as llm:
            check(run_llm(llm, vectors))
    return errors
