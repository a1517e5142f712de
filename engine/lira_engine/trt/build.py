"""Build stages for TensorRT: lower each here, and compile it in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.external_data import save_graph
from lira_engine.bundle.graphs import read_graph
from lira_engine.engines.builder import BuiltStage, Progress
from lira_engine.engines.precision import MIXED, precision_named
from lira_engine.engines.recipe import Recipe
from lira_engine.engines.target import Target
from lira_engine.errors import LiraError, how_it_ended
from lira_engine.lowering.passes.use_mixed_precision import kept_in_fp32
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.tensorrt import tensorrt_pipeline
from lira_engine.ort import lowered_reference
from lira_engine.system.cache import Durations, cache_folder
from lira_engine.system.machine import available_mib
from lira_engine.trt.compile import Job
from lira_engine.trt.flavour import RTX_ALL_PRECISIONS_FROM, Flavour, compute_capabilities, parse_version
from lira_engine.trt.options import RtxOptions, TensorRtOptions
from lira_engine.trt.plugins import sampling_plugin
from lira_engine.trt.profiles import input_ranges, llm_profile_count, stage_profiles

# Peak memory of a compilation: bytes per byte of the lowered weights, and what each takes beside; measured at
# LIRA-2B's sizes with TensorRT for RTX 1.7 (docs/tensorrt.md), rounded up.
PEAK_PER_BYTE = 4.0
PEAK_BASE_MIB = 1024
# On a Jetson, TensorRT tries kernels in the memory that all programs share, by default in all of it.
JETSON_WORKSPACE = 1 << 30
COMPILER = (sys.executable, "-m", "lira_engine.trt.compile")
_TICK_S = 0.5


@dataclass(frozen=True)
class TrtBuilder:
    """Lowers a stage and compiles it in a process of its own."""

    bundle: Bundle
    target: Target
    flavour: Flavour
    precision: str
    options: TensorRtOptions | RtxOptions
    progress: Progress
    recipe: Recipe | None = None

    def __post_init__(self) -> None:
        """Raise LiraError if the bundle, the package or the GPUs do not support the options."""
        parts, vocabulary = self.options.lm_head_parts, self.bundle.manifest.model.vocab_size
        if parts > vocabulary:
            raise LiraError(f"LM head in {parts} parts: expected at most {vocabulary}, a row each")
        for wanted in self._capabilities:
            known = compute_capabilities(self.flavour)
            if wanted not in known:
                raise LiraError(
                    f"compute capability {wanted} is not one that {self.flavour.name} builds for: "
                    f"{', '.join(known)}"
                )
            if self.precision != "fp16" and parse_version(wanted) < RTX_ALL_PRECISIONS_FROM:
                raise LiraError(
                    f"compute capability {wanted} has no {self.precision} matmuls in {self.flavour.name}, "
                    f"expected {'.'.join(map(str, RTX_ALL_PRECISIONS_FROM))} or newer: take --precision fp16"
                )

    @property
    def _capabilities(self) -> tuple[str, ...]:
        return self.options.compute_capabilities if isinstance(self.options, RtxOptions) else ()

    @property
    def _plugin(self) -> bool:
        return isinstance(self.options, TensorRtOptions) and self.options.sampling == "plugin"

    def stage(self, stage: str, folder: Path) -> BuiltStage:
        started = time.perf_counter()
        precision, graph = self._precision(stage), folder / f"{stage}.onnx"
        if not graph.exists():
            self._lower(stage, precision, graph)
        kept = kept_in_fp32(ir.load(graph))
        files = (graph, graph.with_name(f"{graph.name}.data"))
        weights = sum(file.stat().st_size for file in files if file.exists())
        check_memory(stage, weights)
        if precision == MIXED or precision_named(precision).quantized:
            self.progress(stage, "expect")
            lowered_reference.record_in_process(self.bundle, graph, precision, folder, stage)
        job = self._job(stage, precision, graph, folder)
        key, durations = f"{self.target.name} {stage} {precision} {weights}", Durations("build-times")
        last = durations.text(key)
        found = compile_in_process(job, lambda phase: self.progress(stage, f"{phase}{last}"))
        durations.keep(key, time.perf_counter() - started)
        for file in files:
            file.unlink(missing_ok=True)
        self.progress(stage, "done")
        seconds = round(time.perf_counter() - started, 3)
        return BuiltStage(precision, {}, seconds, peak_mib=found["peak_rss_mib"], kept_fp32=kept)

    def lower(self, stage: str, folder: Path) -> None:
        """Write the lowered graph, which `stage` then compiles."""
        self._lower(stage, self._precision(stage), folder / f"{stage}.onnx")

    def compile_part(self, stage: str, graph: Path, engine: Path, inputs: Iterable[str]) -> None:
        """Compile a part of a stage's lowered graph, which reads `inputs`, as `stage` compiles the whole.
        Raises LiraError as that."""
        whole = self._job(stage, self._precision(stage), graph, engine.parent)
        given = set(inputs)
        profiles = [{name: one[name] for name in one if name in given} for one in whole.profiles]
        job = replace(whole, out=str(engine), profiles=profiles)
        compile_in_process(job, lambda phase: self.progress(stage, f"{phase} of a part"))

    def _precision(self, stage: str) -> str:
        part = None if self.recipe is None else self.recipe.stage(stage)
        return self.target.stage_precision(self.precision, stage, part)

    def _lower(self, stage: str, precision: str, graph: Path) -> None:
        self.progress(stage, "lower")
        blocks = self.flavour.package.block_sizes
        passes = tensorrt_pipeline(
            stage,
            precision,
            self.flavour.dialect,
            block=self.options.block_size,
            blocks=blocks,
            lm_head_bits=self.options.lm_head_bits,
            lm_head_parts=self.options.lm_head_parts,
            plugin=sampling_plugin(self.flavour) if self._plugin else None,
            recipe=self.recipe.stage(stage) if precision == MIXED and self.recipe is not None else None,
        )
        model = apply(read_graph(self.bundle.stage_file(stage)), passes)
        quantized = any(node.op_type == "DequantizeLinear" for node in model.graph)
        if precision_named(precision).quantized and not quantized:
            sizes = ", ".join(map(str, sorted(blocks)))
            raise LiraError(
                f"no weight of {self.bundle.path} fits into {precision}, which target {self.target.name} "
                f"takes in blocks of {sizes} inputs: take --precision fp16"
            )
        self.progress(stage, "write")
        save_graph(model, graph)

    def _job(self, stage: str, precision: str, graph: Path, folder: Path) -> Job:
        """Return the job of the compiler."""
        manifest, machine = self.bundle.manifest, self.target.machine()
        spec, count = manifest.stages[stage], llm_profile_count(self.flavour.package, precision)
        return Job(
            target=self.target.name,
            graph=str(graph),
            out=str(folder / self.target.file(stage)),
            profiles=[
                {name: [list(shape) for shape in shapes] for name, shapes in input_ranges(spec, one).items()}
                for one in stage_profiles(manifest, stage, count)
            ],
            compute_capabilities=list(self._capabilities),
            timing_cache=self._timing_cache(machine),
            plugins=self._plugin,
            workspace=JETSON_WORKSPACE if "l4t" in machine else None,
        )

    def _timing_cache(self, machine: Mapping[str, str]) -> str | None:
        """Return the file of kernel timings, or None: the compiler for RTX times no kernels."""
        if self.flavour.package.compiles_at_run:
            return None
        device = "".join(c if c.isalnum() else "-" for c in " ".join(machine.values()))
        return str(cache_folder() / "timing" / f"{device}-{self.flavour.name.replace(' ', '-')}.cache")


def peak_mib(weights: int) -> int:
    """Return about how much memory compiling a graph with `weights` bytes needs, MiB."""
    return PEAK_BASE_MIB + int(weights * PEAK_PER_BYTE / 2**20)


def check_memory(stage: str, weights: int) -> None:
    """Raise LiraError if compiling a graph with `weights` bytes needs more memory than is free."""
    needed = peak_mib(weights)
    free = available_mib()
    if free is not None and free < needed:
        raise LiraError(
            f"{stage} needs about {needed:,} MiB of memory to compile, {free:,} MiB are free, swap included: "
            "close other programs, add swap, or take int4 or a larger --lm-head-parts; nothing was kept"
        )


def compile_in_process(job: Job, phase: Callable[[str], None]) -> dict[str, int]:
    """Run `lira_engine.trt.compile`; call `phase` with its current step every half second.

    Raises LiraError with TensorRT's reason, or if the process was killed.
    """
    with _running(job) as process:
        assert process.stdout is not None
        last: dict[str, Any] = {}
        with _ticking(phase, last):
            for line in process.stdout:
                last.update(json.loads(line))
        code = process.wait()
    stage = Path(job.graph).stem
    if "error" in last:
        raise LiraError(f"{stage}: {last['error']}; nothing was kept")
    if code or "peak_rss_mib" not in last:
        log = Path(job.out).with_suffix(".log")
        said = (
            log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            if log.exists()
            else []
        )
        why = f": {said[0][:300]}" if said else ""
        raise LiraError(f"{stage}: the compiler {how_it_ended(code)}{why}; nothing was kept")
    Path(job.out).with_suffix(".log").unlink(missing_ok=True)
    return {"peak_rss_mib": last["peak_rss_mib"], "layers": last["layers"]}


@contextmanager
def _running(job: Job) -> Iterator[subprocess.Popen[str]]:
    """Run the compiler. Its input stays open for the block: if this process dies, the compiler exits."""
    with open(Path(job.out).with_suffix(".log"), "wb") as log:
        process = subprocess.Popen(
            COMPILER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert process.stdin is not None
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(asdict(job)) + "\n")
                process.stdin.flush()
            yield process
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):
                    if pipe is not None:
                        pipe.close()


@contextmanager
def _ticking(phase: Callable[[str], None], last: Mapping[str, Any]) -> Iterator[None]:
    """Call `phase` during the block: TensorRT itself is silent for most of a build."""
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(_TICK_S):
            phase(last.get("phase", "start"))

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
