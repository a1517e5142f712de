"""A stage in ONNX Runtime sessions on a device, whole or a part of it, for the search for a wrong node."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lira_engine.bundle.check_vectors import CheckVectors
from lira_engine.engines.llm_tensors import cache_output, is_cache_input, prefill_file
from lira_engine.engines.replay import LlmPass, llm_passes, run_llm, run_stage
from lira_engine.ort.device import Device
from lira_engine.ort.gpu_errors import gpu_errors_told
from lira_engine.ort.opening import OrtOpener
from lira_engine.ort.package import onnxruntime
from lira_engine.ort.session import bind_input, open_session
from lira_engine.ort.stage_passes import Arrays


class OrtOnDevice:
    """A stage's engine file. Parts of it get the optimizations that the whole one got."""

    def __init__(self, opener: OrtOpener, stage: str, precision: str, file: Path) -> None:
        self.stage, self.precision, self.graph = stage, precision, file
        self.tiles_at_once = opener.tiles_at_once
        self._opener = opener
        device = replace(opener.device, captures=False)  # of graphs and parts; `answer` runs as the runtime
        self._device = device.for_cache if stage == "llm" else device

    def answer(self, vectors: CheckVectors, tiles: int) -> dict[str, np.ndarray] | None:
        if self.stage != "llm":
            with self._opener.stage(self.stage, self.graph) as runner:
                return run_stage(runner, vectors.inputs, tiles)
        if (self.graph.parent / prefill_file(0)).exists():
            return None
        with self._opener.llm(self.graph) as llm:
            return run_llm(llm, vectors)

    def llm_passes(self, vectors: CheckVectors) -> list[LlmPass]:
        return llm_passes(vectors)

    def whole(self, feeds: Arrays) -> dict[str, np.ndarray]:
        return self._run(self.graph, feeds, None, self._device)

    def part(self, graph: Path, feeds: Arrays, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        return self._run(graph, feeds, outputs, replace(self._device, keeps_engines=False))

    def _run(
        self, graph: Path, feeds: Arrays, outputs: Sequence[str] | None, device: Device
    ) -> dict[str, np.ndarray]:
        """Run a graph once, with caches that are updated in place, as the runtime's are."""
        session = open_session(graph, self._opener.threads, device=device, reuse=self.stage == "llm")
        names = [one.name for one in session.get_outputs()] if outputs is None else list(outputs)
        binding, caches, kept = session.io_binding(), {}, []
        with gpu_errors_told(device):
            for name, array in feeds.items():
                if is_cache_input(name) and cache_output(name) in names:
                    value = onnxruntime.OrtValue.ortvalue_from_numpy(array.copy(), device.memory, 0)
                    caches[cache_output(name)] = value
                    binding.bind_ortvalue_input(name, value)
                else:
                    kept.append(np.ascontiguousarray(array))
                    bind_input(binding, name, kept[-1])
            for name in names:
                if name in caches:
                    binding.bind_ortvalue_output(name, caches[name])
                else:
                    binding.bind_output(name, "cpu")
            session.run_with_iobinding(binding)
            found = binding.get_outputs()
        return {name: np.array(value.numpy()) for name, value in zip(names, found, strict=True)}
