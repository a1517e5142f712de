"""A stage's engine on a GPU, whole or compiled from a part of its graph, for the search for a wrong node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lira_engine.bundle.check_vectors import CheckVectors
from lira_engine.engines.llm_tensors import cache_output, is_cache_input
from lira_engine.engines.precision import MIXED
from lira_engine.engines.replay import LlmPass, llm_passes, run_llm, run_stage
from lira_engine.errors import LiraError
from lira_engine.ort.stage_passes import Arrays
from lira_engine.system.atomic import passing_directory
from lira_engine.system.disk import check_disk
from lira_engine.trt.build import TrtBuilder
from lira_engine.trt.engine import Kernels, TrtEngine
from lira_engine.trt.llm import chunks
from lira_engine.trt.opening import TrtOpener
from lira_engine.trt.profiles import PREFILL_ROWS

if TYPE_CHECKING:
    from lira_engine.bundle.bundle import Bundle
    from lira_engine.engines.finding import Finding
    from lira_engine.engines.record import Build
    from lira_engine.engines.target import Target


class TrtOnDevice:
    """An engine file, and the lowered graph that it was compiled from, written again."""

    def __init__(
        self, opener: TrtOpener, builder: TrtBuilder, stage: str, precision: str, graph: Path, engine: Path
    ) -> None:
        self.stage, self.precision, self.graph = stage, precision, graph
        self.tiles_at_once = opener.tiles_at_once
        self._opener, self._builder, self._engine = opener, builder, engine

    def answer(self, vectors: CheckVectors, tiles: int) -> dict[str, np.ndarray]:
        if self.stage == "llm":
            with self._opener.llm(self._engine) as llm:
                return run_llm(llm, vectors)
        with self._opener.stage(self.stage, self._engine) as runner:
            return run_stage(runner, vectors.inputs, tiles)

    def llm_passes(self, vectors: CheckVectors) -> list[LlmPass]:
        found = []
        for one in llm_passes(vectors):
            asked = sorted({position - one.start for position in one.asked})
            for part in chunks(one.stop - one.start, asked):
                start = one.start + part.start
                rows = tuple(one.start + row for row in part.asked)
                found.append(LlmPass(start, one.start + part.stop, rows))
        return found

    def whole(self, feeds: Arrays) -> dict[str, np.ndarray]:
        return self._run(self._engine, feeds, keeps_kernels=True)

    def part(self, graph: Path, feeds: Arrays, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        engine = self.graph.with_name("part.engine")
        try:
            self._builder.compile_part(self.stage, graph, engine, feeds)
            found = self._run(engine, feeds, keeps_kernels=False)
        finally:
            engine.unlink(missing_ok=True)
        return {name: found[name] for name in outputs}

    def _run(self, file: Path, feeds: Arrays, keeps_kernels: bool) -> dict[str, np.ndarray]:
        """Run an engine once, with caches that it updates in place if it does so."""
        driver = self._opener.driver
        with driver.current():
            engine = TrtEngine(file, self._opener.flavour, driver, self._opener.mend, keeps_kernels)
            try:
                return self._run_open(engine, feeds)
            finally:
                engine.close()

    def _run_open(self, engine: TrtEngine, feeds: Arrays) -> dict[str, np.ndarray]:
        driver, stream = engine.driver, engine.driver.stream()
        profile, kernels = self._profile(engine, feeds)
        context = engine.new_context(profile, stream, kernels)
        inputs = {
            name: np.ascontiguousarray(feeds[name]) for name, one in engine.tensors.items() if one.is_input
        }
        for name, array in inputs.items():
            if -1 in engine.tensors[name].shape:
                context.set_shape(name, array.shape)
        memory: dict[str, Any] = {}
        found: dict[str, np.ndarray] = {}
        try:
            for name, array in inputs.items():
                memory[name] = driver.allocate(array.nbytes)
                driver.copy_in(memory[name], array, stream)
                context.bind(name, memory[name].address)
            shared = {cache_output(name): memory[name] for name in inputs if self._in_place(engine, name)}
            for name, one in engine.tensors.items():
                if one.is_input:
                    continue
                found[name] = driver.pinned(context.shape(name), np.dtype(one.dtype))
                if not one.on_device:
                    context.bind(name, found[name].ctypes.data)
                    continue
                if name not in shared:
                    shared[name] = memory[name] = driver.allocate(max(1, found[name].nbytes))
                context.bind(name, shared[name].address)
            context.execute(stream)
            for name, array in found.items():
                if engine.tensors[name].on_device:
                    driver.copy_out(array, shared[name], stream)
            stream.synchronize()
        finally:
            stream.synchronize()
            for buffer in memory.values():
                buffer.free()
        return {name: np.array(array) for name, array in found.items()}

    def _profile(self, engine: TrtEngine, feeds: Arrays) -> tuple[int, Kernels]:
        """Return the optimization profile and the kernels that the runtime takes for such feeds."""
        if self.stage != "llm":
            return 0, "generic"
        rows = feeds["inputs_embeds"].shape[1] if "inputs_embeds" in feeds else 0
        kernels: Kernels = "specialized" if rows in (1, PREFILL_ROWS) else "generic"
        return (engine.profiles - 1 if rows == 1 else 0), kernels

    def _in_place(self, engine: TrtEngine, name: str) -> bool:
        updated = cache_output(name)
        if not is_cache_input(name) or updated not in engine.tensors:
            return False
        return self._opener.flavour.dialect == "cache_update" and engine.aliased_input(updated) == name


@contextmanager
def open_searcher(
    target: Target, bundle: Bundle, build: Build, threads: int | None, progress: Callable[[str], None]
) -> Iterator[Callable[[str], Finding]]:
    """Yield what searches a stage. It lowers the stage again, into a folder beside the engines, which is
    removed at the end.

    Raises LiraError for engines whose graph cannot be lowered again, or not run by ONNX Runtime.
    """
    from lira_engine.ort.wrong_node import search_stage

    again = target.build_command(bundle.path, target.base)
    if build.precision == MIXED:
        raise LiraError(
            f"--bisect lowers the graphs again, and a recipe is not kept with its engines: {again}"
        )
    if build.options.get("sampling") == "plugin":
        raise LiraError(
            f"--bisect compares with ONNX Runtime, which lacks NVIDIA's plugin: {again} --sampling gathers"
        )
    files, folder = bundle.manifest.files, bundle.engine_folder(target.name, build.precision)
    portable = {
        stage: sum(files[name].bytes for name in bundle.stage_sources(stage)) for stage in build.precisions
    }
    largest = max(target.expected_engine_bytes(build.precision, portable).values())
    check_disk(folder, 2 * largest, "the search for a wrong node")  # a lowered graph, and an engine of it
    options = target.read_options(build.options, build.precision)

    def phase(stage: str, what: str) -> None:
        progress(f"{stage}: {what}")

    builder = target.builder(bundle, build.precision, options, threads, phase)
    opener = target.opener(bundle, build.precision, build.options, threads)
    assert isinstance(builder, TrtBuilder) and isinstance(opener, TrtOpener)
    with passing_directory(folder) as place:

        def search(stage: str) -> Finding:
            graph, precision = place / f"{stage}.onnx", build.precisions[stage]
            builder.lower(stage, place)
            device = TrtOnDevice(opener, builder, stage, precision, graph, folder / target.file(stage))
            try:
                return search_stage(bundle, device, threads, progress)
            finally:
                for file in place.iterdir():
                    file.unlink()

        yield search
