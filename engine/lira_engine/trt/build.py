"""Stages built by TensorRT: lowered here, compiled one by one in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx_ir as ir

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.external_data import save_graph
from lira_engine.bundle.integrity import cache_folder
from lira_engine.engines.builder import BuiltStage, Progress, gpu_bytes, gpu_precision
from lira_engine.engines.options import TrtOptions, recorded_options
from lira_engine.engines.record import engine_file
from lira_engine.errors import LiraError, how_it_ended
from lira_engine.lowering.passes.use_mixed_precision import kept_in_fp32
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.tensorrt import BLOCKS, tensorrt_pipeline
from lira_engine.ort import lowered_reference
from lira_engine.system.atomic import atomic_write
from lira_engine.system.machine import available_mib
from lira_engine.trt.compile import Job
from lira_engine.trt.flavour import (
    RTX_ALL_PRODUCTS_FROM,
    compute_capabilities,
    engine_machine,
    engine_tools,
    load_flavour,
    parse_version,
)
from lira_engine.trt.plugins import sampling_plugin
from lira_engine.trt.profiles import input_ranges, llm_profiles, stage_profiles

# Peak memory of compiling over the bytes of the lowered weights, and what every compilation takes; measured
# at LIRA-2B's sizes with TensorRT for RTX 1.7 (docs/tensorrt.md), rounded up.
PEAK_PER_BYTE = 4.0
PEAK_LEAST_MIB = 1024
# Inputs of an int4 weight that may share a scale: TensorRT documents two sizes, that for RTX compiles all.
_BLOCKS: Mapping[str, tuple[int, ...]] = MappingProxyType({"tensorrt": (128, 64), "tensorrt-rtx": BLOCKS})
# An engine's kernels beside its weights: those of lira-nano take 2 to 15 MiB, for one GPU or for four.
KERNEL_BYTES = 16 << 20
# On a Jetson kernels are tried in the memory that everything else lives in, all of it unless told otherwise.
JETSON_WORKSPACE = 1 << 30
COMPILER = (sys.executable, "-m", "lira_engine.trt.compile")
_TICK_S = 0.5


class TrtBuilder:
    """Builds for "tensorrt" or "tensorrt-rtx". Raises LiraError where its package is not installed."""

    def __init__(
        self, bundle: Bundle, target: str, precision: str, options: TrtOptions, progress: Progress
    ) -> None:
        if options.compute_capabilities and target != "tensorrt-rtx":
            raise LiraError(
                f"target {target} builds for the GPU that is there: leave compute capabilities out"
            )
        if options.sampling == "plugin" and target == "tensorrt-rtx":
            raise LiraError("TensorRT for RTX has no plugin for sampling: take --sampling gathers")
        if precision == "int4" and options.block_size not in _BLOCKS[target]:
            raise LiraError(f"block size {options.block_size}: target {target} takes 64 or 128")
        self.bundle, self.target, self.precision = bundle, target, precision
        self.options, self.progress = options, progress
        self.flavour = load_flavour(target)
        self._check_sizes()

    def _check_sizes(self) -> None:
        """Raise LiraError for options that the bundle, the package or the GPUs do not take."""
        parts, vocabulary = self.options.lm_head_parts, self.bundle.manifest.model.vocab_size
        if parts > vocabulary:
            raise LiraError(f"LM head in {parts} parts: expected at most {vocabulary}, a row each")
        for wanted in self.options.compute_capabilities:
            known = compute_capabilities(self.flavour)
            if wanted not in known:
                raise LiraError(
                    f"compute capability {wanted} is not one that {self.flavour.name} builds for: "
                    f"{', '.join(known)}"
                )
            if self.precision != "fp16" and parse_version(wanted) < RTX_ALL_PRODUCTS_FROM:
                raise LiraError(
                    f"compute capability {wanted} has no {self.precision} products in {self.flavour.name}, "
                    f"expected {'.'.join(map(str, RTX_ALL_PRODUCTS_FROM))} or newer: take --precision fp16"
                )

    @property
    def recorded(self) -> dict[str, Any]:
        options = recorded_options(self.target, self.precision, self.options)
        return {"dialect": self.flavour.dialect, **options}

    def machine(self) -> dict[str, str]:
        return engine_machine(self.target)

    def tools(self) -> dict[str, str]:
        return engine_tools(self.target)

    def expected_bytes(self, portable: Mapping[str, int]) -> int:
        """The engines, and the largest lowered graph beside them."""
        sizes = gpu_bytes(self.precision, portable)
        return sum(sizes) + max(sizes) + KERNEL_BYTES * len(sizes)

    def stage(self, stage: str, folder: Path) -> BuiltStage:
        started = time.perf_counter()
        precision = gpu_precision(self.precision, stage)
        graph = folder / f"{stage}.onnx"
        kept = self._lower(stage, precision, graph)
        files = (graph, graph.with_name(f"{graph.name}.data"))
        weights = sum(file.stat().st_size for file in files if file.exists())
        check_memory(stage, weights)
        if precision == "int4":
            self.progress(stage, "expect")
            lowered_reference.record_in_process(self.bundle, graph, precision, folder)
        spec = self.bundle.manifest.stages[stage]
        job = Job(
            target=self.target,
            graph=str(graph),
            out=str(folder / engine_file(self.target, stage)),
            profiles=[
                {name: [list(shape) for shape in shapes] for name, shapes in input_ranges(spec, one).items()}
                for one in stage_profiles(self.bundle.manifest, stage, llm_profiles(self.target, precision))
            ],
            compute_capabilities=list(self.options.compute_capabilities),
            timing_cache=self._timing_cache(),
            plugins=self.options.sampling == "plugin",
            workspace=JETSON_WORKSPACE if "l4t" in self.machine() else None,
        )
        known = _Durations(f"{self.target} {stage} {precision} {weights}")
        found = compile_in_process(job, lambda phase: self.progress(stage, f"{phase}{known.text()}"))
        known.keep(time.perf_counter() - started)
        for file in files:
            file.unlink(missing_ok=True)
        self.progress(stage, "done")
        seconds = round(time.perf_counter() - started, 3)
        return BuiltStage(precision, {}, seconds, peak_mib=found["peak_rss_mib"], kept_fp32=kept)

    def _lower(self, stage: str, precision: str, graph: Path) -> tuple[str, ...]:
        """Write the lowered graph; the weights that do not fit into fp16."""
        self.progress(stage, "lower")
        passes = tensorrt_pipeline(
            stage,
            precision,
            self.flavour.dialect,
            block=self.options.block_size,
            blocks=_BLOCKS[self.target],
            lm_head_bits=self.options.lm_head_bits,
            lm_head_parts=self.options.lm_head_parts,
            plugin=sampling_plugin(self.flavour) if self.options.sampling == "plugin" else None,
        )
        model = apply(ir.load(self.bundle.stage_file(stage)), passes)
        if precision == "int4" and not any(node.op_type == "DequantizeLinear" for node in model.graph):
            sizes = ", ".join(map(str, sorted(_BLOCKS[self.target])))
            raise LiraError(
                f"no weight of {self.bundle.path} fits into int4, which target {self.target} takes in blocks "
                f"of {sizes} inputs: take --precision fp16"
            )
        self.progress(stage, "write")
        save_graph(model, graph)
        return kept_in_fp32(model)

    def _timing_cache(self) -> str | None:
        """TensorRT times kernels on the GPU that is there; the compiler for RTX times nothing."""
        if self.target != "tensorrt":
            return None
        device = "".join(c if c.isalnum() else "-" for c in " ".join(self.machine().values()))
        return str(cache_folder() / "timing" / f"{device}-{self.flavour.name.replace(' ', '-')}.cache")


def check_memory(stage: str, weights: int) -> None:
    """Raise LiraError where compiling a graph with `weights` bytes needs more memory than is free."""
    needed = PEAK_LEAST_MIB + int(weights * PEAK_PER_BYTE / 2**20)
    free = available_mib()
    if free is not None and free < needed:
        raise LiraError(
            f"{stage} needs about {needed:,} MiB of memory to compile, {free:,} MiB are free, swap included: "
            "close other programs, add swap, or take int4 or a larger --lm-head-parts; nothing was kept"
        )


def compile_in_process(job: Job, phase: Callable[[str], None]) -> dict[str, int]:
    """Run `lira_engine.trt.compile`; `phase` is called with its current step, every half second.

    Raises LiraError with TensorRT's reason, or where the process was killed.
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
    """The compiler. Its input stays open: where this process is killed, it ends, and the compiler with it."""
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
    """Call `phase` now and then: TensorRT itself is silent for most of a build."""
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


class _Durations:
    """How long the same build took last time on this machine. Losing it costs a few words of the progress."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._path = cache_folder() / "build-times.json"

    def text(self) -> str:
        seconds = self._all().get(self._key)
        return f", {seconds:.0f} s last time" if isinstance(seconds, (int, float)) else ""

    def keep(self, seconds: float) -> None:
        known = self._all() | {self._key: round(seconds, 1)}
        with suppress(OSError, LiraError), atomic_write(self._path) as file:
            file.write(json.dumps(known, indent=1).encode())

    def _all(self) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            known = json.loads(self._path.read_text(encoding="utf-8"))
            if isinstance(known, dict):
                return known
        return {}
