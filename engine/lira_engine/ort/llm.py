"""Run the language model by ONNX Runtime, with KV caches that are updated in place."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np

from lira_engine.bundle.manifest import ModelSpec
from lira_engine.engines.llm_tensors import (
    POSITION,
    SEQLENS,
    TOTAL,
    cache_output,
    cache_scales,
    is_cache_input,
)
from lira_engine.engines.runner import Closing, KvCache, LlmOutput, check_embeddings, check_room
from lira_engine.errors import Closed, LiraError
from lira_engine.ort.device import CPU, Device
from lira_engine.ort.gpu_errors import gpu_errors_told
from lira_engine.ort.int8_cache import Int8KvCache
from lira_engine.ort.kv_cache import OrtKvCache, empty_rows
from lira_engine.ort.large_pages import large_pages
from lira_engine.ort.package import onnxruntime
from lira_engine.ort.prefill import LEAST_ROWS, OrtPrefill
from lira_engine.ort.run_errors import run_errors_told
from lira_engine.ort.session import bind_input, bind_output, open_session, run_options
from lira_engine.ort.step_graph import StepGraphs, not_captured, refusal_told
from lira_engine.system.free_memory import return_free_memory

_CACHE_DTYPES: dict[str, type[np.number]] = {"tensor(float16)": np.float16, "tensor(int8)": np.int8}


class OrtLlm(Closing):
    """Runs a portable or built graph of the language model (tensors: lira_export.graphs.llm).

    Passes of many rows go through the graphs for these, where a build made them (`OrtPrefill`).
    """

    def __init__(self, path: Path, threads: int | None = None, device: Device = CPU) -> None:
        """`threads`: see `open_session`. Raises LiraError for any other graph."""
        self._path, self._device = path, device.for_cache
        large = large_pages(_packed_bytes(path)) if self._device.memory == "cpu" else nullcontext()
        with large, refusal_told():
            self._session: onnxruntime.InferenceSession | None = open_session(
                path, threads, reuse=True, device=self._device
            )
        inputs = {tensor.name: tensor.shape for tensor in self._session.get_inputs()}
        outputs = {tensor.name: tensor.shape for tensor in self._session.get_outputs()}
        self._cache_shapes = {name: tuple(shape) for name, shape in inputs.items() if is_cache_input(name)}
        types = {tensor.name: tensor.type for tensor in self._session.get_inputs()}
        self._cache_dtype = _CACHE_DTYPES.get(types.get("key_cache.0", ""), np.float32)
        tensors = {"inputs_embeds", "logit_positions", *self._cache_shapes}
        tensors |= inputs.keys() & {POSITION} if {SEQLENS, TOTAL} <= inputs.keys() else {POSITION}
        tensors |= inputs.keys() & {SEQLENS, TOTAL}
        if self._cache_dtype is np.int8:
            tensors |= {cache_scales(name) for name in self._cache_shapes}
        made = {"logits", "hidden_states", *map(cache_output, self._cache_shapes)}
        ranks = {len(outputs.get(name, ())) for name in ("logits", "hidden_states")}
        if inputs.keys() != tensors or not made <= outputs.keys() or ranks != {3}:
            raise LiraError(f"{path} is no language model's graph: its inputs are {', '.join(inputs)}")
        shape, *others = {*self._cache_shapes.values()} or {()}
        if others or len(shape) != 4 or not all(isinstance(size, int) for size in shape):
            raise LiraError(f"{path} is no language model's graph: its cache is {[shape, *others]}")
        _, kv_heads, capacity, head_dim = shape
        self.sizes = {
            "num_layers": len(self._cache_shapes) // 2,
            "num_kv_heads": kv_heads,
            "head_dim": head_dim,
            "context_length": capacity,
            "hidden_size": outputs["hidden_states"][2],
            "vocab_size": outputs["logits"][2],
        }
        self._caches: weakref.WeakSet[OrtKvCache] = weakref.WeakSet()
        self._steps: StepGraphs | None = None
        if self._device.captures:
            empty = partial(empty_rows, self._cache_shapes, self._cache_dtype, self._device)
            self._steps = StepGraphs(self._session, empty, self._cache_dtype, self._device)
        self._prefill = OrtPrefill(path.parent, self.sizes["num_layers"], threads)
        if self._cache_dtype is np.int8 and not self._prefill:
            raise LiraError(
                f"{path} has an int8 KV cache, but the graphs for passes of many rows beside it are missing: "
                "build it again"
            )

    @property
    def capacity(self) -> int:
        return self.sizes["context_length"]

    def new_cache(self) -> OrtKvCache:
        if self._session is None:
            raise Closed("the language model")
        if self._cache_dtype is np.int8:
            cache: OrtKvCache = Int8KvCache(self._session, self._cache_shapes)
        else:
            with gpu_errors_told(self._device):
                step = None if self._steps is None else self._steps.take()
            cache = OrtKvCache(self._session, self._cache_shapes, self._cache_dtype, self._device, step)
            if self._steps is not None and step is not None:
                self._steps.give_back_after(cache, step)
        self._caches.add(cache)
        return cache

    def forward(
        self, embeds: np.ndarray, cache: KvCache, logit_positions: Sequence[int] = (-1,)
    ) -> LlmOutput:
        """Append `embeds` [S, C] float32 to the sequence in `cache`; return the outputs at `logit_positions`,
        indices into S, negative ones from the end.

        Raises ContextFull, with the cache unchanged, if S rows do not fit; ValueError for embeddings of
        another shape or dtype, positions outside S, and a cache of another model.
        """
        rows = check_embeddings(embeds, logit_positions, self.sizes["hidden_size"])
        if self._session is None:
            raise Closed("the language model")
        if not isinstance(cache, OrtKvCache) or cache not in self._caches:
            raise ValueError("the cache belongs to another language model")
        check_room(cache.length, cache.capacity, rows)
        asked = [p % rows for p in logit_positions]
        before = min(asked, default=rows)  # rows of which only the cache is read
        if self.reads_many_rows and before >= LEAST_ROWS:
            self.read_many_rows(embeds[:before], cache)
            asked, embeds = [p - before for p in asked], embeds[before:]
        elif not cache.measured:
            self.read_many_rows(embeds, cache)
            cache.truncate(0)
        return self._forward(embeds, cache, np.array(asked, np.int64))

    @property
    def reads_many_rows(self) -> bool:
        """Whether passes of many rows have graphs of their own."""
        return bool(self._prefill)

    def read_many_rows(self, embeds: np.ndarray, cache: OrtKvCache) -> None:
        """Append `embeds` [S, C] float32 to the sequence in `cache`, which has room for them, by these
        graphs."""
        self._prefill.fill(embeds, cache)

    def _forward(self, embeds: np.ndarray, cache: OrtKvCache, positions: np.ndarray) -> LlmOutput:
        """`forward` of checked rows, if any are left, through the graph. `positions`: not negative."""
        binding, session, rows, asked = cache.binding, self._session, len(embeds), len(positions)
        assert binding is not None and session is not None
        embeds = np.ascontiguousarray(embeds)[None]
        if cache.step is not None and rows == asked == 1 and cache.length:
            found = cache.step.run(session, embeds, cache.length)
            cache.fill(cache.length + 1)
            return LlmOutput(found[0][0], found[1][0])
        logits = np.empty((1, asked, self.sizes["vocab_size"]), np.float32)
        hidden = np.empty((1, asked, self.sizes["hidden_size"]), np.float32)
        if not rows:
            return LlmOutput(logits[0], hidden[0])
        cache.before_few_rows()
        with run_errors_told(self._path, self._device):
            cache.bind_lengths(rows)
            bind_input(binding, "inputs_embeds", embeds)
            bind_input(binding, "logit_positions", positions)
            bind_output(binding, "logits", logits)
            bind_output(binding, "hidden_states", hidden)
            # A decode step needs a few kilobytes, which the arena keeps for the next one.
            session.run_with_iobinding(binding, self._run_options(rows))
        cache.fill(cache.length + rows)
        return LlmOutput(logits[0], hidden[0])

    def _run_options(self, rows: int) -> onnxruntime.RunOptions | None:
        """Return the options of a run that is no captured step."""
        if self._device.captures:
            return not_captured()
        return run_options(self._device) if rows > 1 else None

    def close(self) -> None:
        """Free the weights and all caches."""
        for cache in self._caches:
            cache.binding = cache.step = None
        if self._steps is not None:
            self._steps.close()
        self._steps = None
        self._caches.clear()
        self._prefill.close()
        self._session = None
        return_free_memory()


def _packed_bytes(path: Path) -> int:
    """Return about how many bytes a session keeps of a graph's weights: packed, int4 ones take a fifth more
    than in the file."""
    data = path.with_name(f"{path.name}.data")
    return data.stat().st_size * 5 // 4 if data.is_file() else 0


def open_llm(path: Path, spec: ModelSpec, threads: int | None = None, device: Device = CPU) -> OrtLlm:
    """Open a bundle's language model. Raises LiraError if the graph's sizes are not those of `spec`."""
    llm = OrtLlm(path, threads, device)
    wrong = [
        f"{name} {found}, expected {getattr(spec, name)}"
        for name, found in llm.sizes.items()
        if found != getattr(spec, name)
    ]
    if wrong:
        raise LiraError(f"{path} is not this bundle's language model ({'; '.join(wrong)}): export it again")
    return llm
