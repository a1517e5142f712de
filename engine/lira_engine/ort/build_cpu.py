"""Build stages for ONNX Runtime on the CPU, and check them on the bundle's check vectors."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.check_vectors import CheckVectors
from lira_engine.bundle.external_data import save_graph
from lira_engine.bundle.graphs import read_graph
from lira_engine.engines.accuracy import Checked, NotFinite, check_stage_outputs
from lira_engine.engines.builder import BuiltStage, Progress
from lira_engine.engines.near_ties import Flip
from lira_engine.engines.precision import MIXED
from lira_engine.engines.recipe import MEND as RECIPE_MEND
from lira_engine.engines.recipe import Recipe
from lira_engine.engines.replay import run_llm
from lira_engine.engines.target import Target
from lira_engine.errors import LiraError, OutOfMemory
from lira_engine.lowering.cpu import cpu_pipeline, cpu_prefill
from lira_engine.lowering.passes.quantize_kv_cache import QuantizeKvCache
from lira_engine.lowering.pipeline import Pass, apply
from lira_engine.lowering.prefill import save_prefill
from lira_engine.lowering.quantization import Quantization
from lira_engine.ort.llm import OrtLlm
from lira_engine.ort.not_finite import first_not_finite
from lira_engine.ort.opening import OrtOpener
from lira_engine.ort.options import CpuOptions
from lira_engine.system import load
from lira_engine.system.turns import in_turns, until_clear

WORTHWHILE = 1.1
"""Least speedup over fp32, in processor time, at which int8 is chosen."""


@dataclass(frozen=True)
class CpuBuilder:
    """Lowers a stage for ONNX Runtime on the CPU, writes it into a folder and checks it."""

    opener: OrtOpener
    target: Target
    precision: str
    options: CpuOptions
    progress: Progress
    recipe: Recipe | None = None

    @property
    def bundle(self) -> Bundle:
        return self.opener.bundle

    def stage(self, stage: str, folder: Path) -> BuiltStage:
        started = time.perf_counter()
        choices = self.target.stage_precisions(self.precision, stage)
        if self.recipe is not None:
            choices = (self.target.stage_precision(self.precision, stage, self.recipe.stage(stage)),)
        speedup = beside = None
        if len(choices) == 1 or self.options.encoders != "auto":
            precision = choices[0] if len(choices) == 1 else self.options.encoders
            checked = self._write(stage, precision, folder)
        else:
            first = load.reading()
            precision, checked, speedup = self._faster(stage, folder)
            beside = load.between(first, load.reading())
        self.progress(stage, "done")
        return BuiltStage(
            precision,
            checked.errors,
            round(time.perf_counter() - started, 3),
            speedup,
            None if speedup is None or beside is None else round(beside.lost, 3),
            flips=checked.flips,
        )

    def _write(self, stage: str, precision: str, folder: Path) -> Checked:
        """Write one engine file and check it."""
        self.progress(stage, "lower")
        portable = read_graph(self.bundle.stage_file(stage))
        model = apply(portable, self._passes(stage, precision))
        self.progress(stage, "write")
        file = folder / self.target.file(stage)
        save_graph(model, file)
        del model, portable
        if stage == "llm":
            self._write_prefill(precision, folder)
        self.progress(stage, "check")
        return check_stage(self.opener, stage, file, f"the {self.target.name} engine of {stage}", precision)

    def _write_prefill(self, precision: str, folder: Path) -> None:
        """Write the language model's graphs for passes of many rows, if it is quantized."""
        if self.options.prefill == "same":
            return
        recipe = None if self.recipe is None else self.recipe.stage("llm")
        groups = cpu_prefill(read_graph(self.bundle.stage_file("llm")), precision, recipe)
        if not groups and self.options.kv_cache == "int8":
            raise LiraError(
                "an int8 KV cache needs graphs for passes of many rows, which this language model does not "
                "get: leave out --kv-cache int8"
            )
        save_prefill(groups, folder)

    def _passes(self, stage: str, precision: str) -> Sequence[Pass]:
        if precision == MIXED and self.recipe is not None:
            passes = cpu_pipeline(stage, precision, recipe=self.recipe.stage(stage))
        else:
            quantization = Quantization(self.options.block_size, self.options.lm_head_bits)
            passes = cpu_pipeline(stage, precision, quantization)
        if stage == "llm" and self.options.kv_cache == "int8":
            return (*passes, QuantizeKvCache())
        return passes

    def _faster(self, stage: str, folder: Path) -> tuple[str, Checked, float | None]:
        """Write fp32 or int8 into `folder`: int8 if it is accurate enough and faster. Return the precision,
        its check and the speedup of int8, if it was timed."""
        folders = {precision: folder / precision for precision in ("fp32", "int8")}
        for one in folders.values():
            one.mkdir()
        checked = {"fp32": self._write(stage, "fp32", folders["fp32"])}
        speedup, chosen = None, "fp32"
        try:
            checked["int8"] = self._write(stage, "int8", folders["int8"])
        except OutOfMemory:
            raise
        except LiraError:
            pass  # int8 is not accurate enough: fp32 is kept, as build.json records
        else:
            speedup = self._speedup(stage, folders["fp32"], folders["int8"])
            chosen = "int8" if speedup >= WORTHWHILE else "fp32"
        for file in folders[chosen].iterdir():
            file.rename(folder / file.name)
        for precision, one in folders.items():
            for file in one.iterdir():
                file.unlink()
            folders[precision].rmdir()
        return chosen, checked[chosen], speedup

    def _speedup(self, stage: str, before: Path, after: Path) -> float:
        """Return the speedup of the engine in `after` over that in `before`, each with one thread, so that
        other programs do not choose (system.turns)."""
        self.progress(stage, "time")
        inputs = self.bundle.check_vectors(stage).inputs
        opener = replace(self.opener, threads=1)
        files = [folder / self.target.file(stage) for folder in (before, after)]
        with opener.stage(stage, files[0]) as first, opener.stage(stage, files[1]) as second:
            works = [lambda runner=runner: runner.run(inputs) for runner in (first, second)]
            return round(in_turns(works, until_clear(WORTHWHILE)).speedup(), 3)


def check_stage(opener: OrtOpener, stage: str, file: Path, what: str, precision: str) -> Checked:
    """Run a stage's file on the bundle's check vectors and check each output.

    The language model runs as a plain graph, with caches as inputs and outputs, if the check vectors hold
    them; and with its runner's cache if they begin at position 0: a few rows at a time, and as many rows, if
    it has graphs for these. Raises LiraError, which begins with `what`, if an error is above the tolerance
    (see `check_outputs`).
    """
    bundle = opener.bundle
    vectors = bundle.check_vectors(stage)
    errors: dict[str, float] = {}
    flips: tuple[Flip, ...] = ()

    def check(found: Mapping[str, np.ndarray], of: CheckVectors = vectors) -> None:
        nonlocal flips
        try:
            new = check_stage_outputs(what, precision, found, of)
        except NotFinite as error:
            tensor = first_not_finite(file, vectors.inputs)
            told = f"{stage}: {tensor} is not finite on the check vectors" if tensor else str(error)
            raise NotFinite(f"{told}; nothing was kept: {RECIPE_MEND}") from None
        except LiraError as error:
            raise LiraError(
                f"{error}; nothing was kept. Report this with the output of `lira-edge doctor`"
            ) from None
        flips += new.flips
        for output, size in new.errors.items():
            errors[output] = max(size, errors.get(output, 0.0))

    if vectors.inputs.keys() == bundle.manifest.stages[stage].inputs.keys():
        with opener.stage(stage, file) as runner:
            check(runner.run(vectors.inputs))
    if stage == "llm" and not vectors.inputs["position"].any():
        with opener.llm(file) as llm:
            check(run_llm(llm, vectors))
            if llm.reads_many_rows:
                check(*_after_many_rows(llm, vectors))
    return Checked(errors, flips)


def _after_many_rows(llm: OrtLlm, vectors: CheckVectors) -> tuple[dict[str, np.ndarray], CheckVectors]:
    """Return the outputs at the last row, found and expected, with all rows before it read as many rows."""
    embeds, cache = vectors.inputs["inputs_embeds"][0], llm.new_cache()
    last = int(vectors.inputs["logit_positions"].argmax())
    end = int(vectors.inputs["logit_positions"][last])
    llm.read_many_rows(embeds[:end], cache)
    out = llm.forward(embeds[end : end + 1], cache)
    expected = {name: array[:, last : last + 1] for name, array in vectors.outputs.items()}
    return {"logits": out.logits[None], "hidden_states": out.hidden[None]}, replace(vectors, outputs=expected)
