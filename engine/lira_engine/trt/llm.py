"""The language model run by TensorRT. Its KV caches never leave the device."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lira_engine.bundle.manifest import ModelSpec
from lira_engine.cuda.driver import Buffer
from lira_engine.engines.llm_tensors import cache_output, is_cache_input
from lira_engine.engines.runner import Closing, CountedRows, KvCache, LlmOutput, check_embeddings, check_room
from lira_engine.errors import Closed
from lira_engine.trt.engine import TrtContext, TrtEngine
from lira_engine.trt.profiles import ASKED_ROWS, PREFILL_ROWS

CacheBuffers = dict[str, Buffer]
"""By input: "key_cache.0", "value_cache.0", ..."""


class TrtKvCache(CountedRows):
    """Keys and values of one sequence, in buffers of the language model that made it.

    A pass reads `buffers[0]` and writes `buffers[-1]`: the same buffers if the engine updates the cache in
    place, two sets that swap if it writes a new one.
    """

    def __init__(self, buffers: list[CacheBuffers], capacity: int) -> None:
        super().__init__(capacity)
        self.buffers = buffers

    @property
    def nbytes(self) -> int:
        """Bytes on the device, which a later cache gets when this one is dropped."""
        return sum(buffer.size for each in self.buffers for buffer in each.values())


@dataclass(frozen=True)
class Chunk:
    """Rows `start` to `stop` of an input, for one pass. `asked`: those rows of the input that need logits."""

    start: int
    stop: int
    asked: tuple[int, ...]


def chunks(rows: int, asked: Sequence[int]) -> Iterator[Chunk]:
    """Cut `rows` rows into chunks that prefill takes. `asked` is sorted, without repeats."""
    start = 0
    while start < rows:
        stop = min(start + PREFILL_ROWS, rows)
        inside = [row for row in asked if start <= row < stop]
        if len(inside) > ASKED_ROWS:
            stop = inside[ASKED_ROWS]
        yield Chunk(start, stop, tuple(inside[:ASKED_ROWS]))
        start = stop


class TrtLlm(Closing):
    """An engine with an execution context for decode steps (profile 1, or 0 if it is the only one), one for
    full prefill chunks if kernels are compiled for their shape, and one for chunks of other lengths. All use
    one stream.

    Embeddings, positions and asked rows go to the device, logits and hidden states of the asked rows come
    back. Their page-locked arrays and device buffers are allocated once.
    """

    def __init__(self, engine: TrtEngine, model: ModelSpec) -> None:
        """Call inside `driver.current()`; `engine` must have the tensors of `model`."""
        self._model = model
        self._engine = engine
        self._driver = driver = engine.driver
        self._stream = driver.stream()
        other = engine.new_context(0, self._stream)
        full = engine.new_context(0, self._stream, "specialized") if engine.compiles_kernels else other
        decode = engine.new_context(engine.profiles - 1, self._stream, "captured")
        self._contexts: dict[int | None, TrtContext] = {None: other, PREFILL_ROWS: full, 1: decode}  # by rows
        self._copied_in = driver.event()
        self._host = {
            "inputs_embeds": driver.pinned((PREFILL_ROWS, model.hidden_size), np.float32),
            "position": driver.pinned((1,), np.int64),
            "logit_positions": driver.pinned((ASKED_ROWS,), np.int64),
            "logits": driver.pinned((ASKED_ROWS, model.vocab_size), np.float32),
            "hidden_states": driver.pinned((ASKED_ROWS, model.hidden_size), np.float32),
        }
        self._buffers = {name: driver.allocate(array.nbytes) for name, array in self._host.items()}
        for context in self._contexts.values():
            for name, buffer in self._buffers.items():
                context.bind(name, buffer.address)
        self._cache_sizes = {
            name: int(np.prod(tensor.shape)) * np.dtype(tensor.dtype).itemsize
            for name, tensor in engine.tensors.items()
            if is_cache_input(name)
        }
        self._sets = 1 if engine.flavour.dialect == "cache_update" else 2
        self._caches: weakref.WeakSet[TrtKvCache] = weakref.WeakSet()
        self._allocated: list[CacheBuffers] = []
        self._free: list[list[CacheBuffers]] = []  # of dropped caches, for the next one
        self._lock = threading.Lock()

    @property
    def capacity(self) -> int:
        return self._model.context_length

    def new_cache(self) -> TrtKvCache:
        """Return an empty cache for one sequence. Raises LiraError if the device has no room for it."""
        with self._lock, self._driver.current():
            if not self._contexts:
                raise Closed("the language model")
            buffers = self._free.pop() if self._free else self._allocate()
            # A masked row has weight zero, and zero times NaN is NaN.
            for buffer in (one for each in buffers for one in each.values()):
                self._driver.zero(buffer, self._stream)
        cache = TrtKvCache(buffers, self.capacity)
        weakref.finalize(cache, self._free.append, list(buffers)).atexit = False
        self._caches.add(cache)
        return cache

    def forward(
        self, embeds: np.ndarray, cache: KvCache, logit_positions: Sequence[int] = (-1,)
    ) -> LlmOutput:
        """Append `embeds` [S, C] float32 to the sequence in `cache`; return logits and hidden states at
        `logit_positions`, indices into S, from the end if negative.

        Raises ContextFull, with the cache unchanged, if S rows do not fit; ValueError for embeddings of
        another shape or dtype, positions outside S, and a cache of another model.
        """
        rows = check_embeddings(embeds, logit_positions, self._model.hidden_size)
        with self._lock, self._driver.current():
            if not self._contexts:
                raise Closed("the language model")
            if not isinstance(cache, TrtKvCache) or cache not in self._caches:
                raise ValueError("the cache belongs to another language model")
            check_room(cache.length, cache.capacity, rows)
            asked, places = np.unique(
                np.array([p % rows for p in logit_positions], np.int64), return_inverse=True
            )
            logits = np.empty((len(asked), self._model.vocab_size), np.float32)
            hidden = np.empty((len(asked), self._model.hidden_size), np.float32)
            answered = 0
            for chunk in chunks(rows, asked.tolist()):
                self._enqueue(embeds, chunk, cache)
                if count := len(chunk.asked):
                    found = self._answers(count)
                    logits[answered : answered + count] = found["logits"]
                    hidden[answered : answered + count] = found["hidden_states"]
                    answered += count
            cache.fill(cache.length + rows)
        return LlmOutput(logits[places], hidden[places])

    def _enqueue(self, embeds: np.ndarray, chunk: Chunk, cache: TrtKvCache) -> None:
        rows = chunk.stop - chunk.start
        asked = [row - chunk.start for row in chunk.asked] or [rows - 1]  # at least one, even if unread
        self._copied_in.synchronize()  # the device may still read the previous chunk's arrays
        given = {
            "inputs_embeds": self._host["inputs_embeds"][:rows],
            "position": self._host["position"],
            "logit_positions": self._host["logit_positions"][: len(asked)],
        }
        given["inputs_embeds"][:] = embeds[chunk.start : chunk.stop]
        given["position"][0] = cache.length + chunk.start
        given["logit_positions"][:] = asked
        for name, array in given.items():
            self._driver.copy_in(self._buffers[name], array, self._stream)
        self._copied_in.record(self._stream)

        context = self._contexts[rows if rows in self._contexts else None]
        context.set_shape("inputs_embeds", (1, rows, self._model.hidden_size))
        context.set_shape("logit_positions", (len(asked),))
        for name, buffer in cache.buffers[0].items():
            context.bind(name, buffer.address)
        for name, buffer in cache.buffers[-1].items():
            context.bind(cache_output(name), buffer.address)
        context.execute(self._stream)
        cache.buffers.reverse()

    def _answers(self, count: int) -> dict[str, np.ndarray]:
        """Return logits and hidden states of the last pass, in the page-locked arrays."""
        found = {name: self._host[name][:count] for name in ("logits", "hidden_states")}
        for name, array in found.items():
            self._driver.copy_out(array, self._buffers[name], self._stream)
        self._stream.synchronize()
        return found

    def _allocate(self) -> list[CacheBuffers]:
        """Return the buffers of one cache; keep none if one does not fit."""
        sets: list[CacheBuffers] = [{} for _ in range(self._sets)]
        try:
            for buffers in sets:
                for name, size in self._cache_sizes.items():
                    buffers[name] = self._driver.allocate(size)
        except BaseException:
            for buffer in (one for buffers in sets for one in buffers.values()):
                buffer.free()
            raise
        self._allocated += sets
        return sets

    def close(self) -> None:
        """Free the weights and all caches."""
        with self._lock, self._driver.current():
            if not self._contexts:
                return
            self._stream.synchronize()
            self._contexts.clear()
            self._caches.clear()
            self._free.clear()
            for buffers in (*self._allocated, self._buffers):
                for buffer in buffers.values():
                    buffer.free()
            self._allocated.clear()
            self._buffers.clear()
            self._host.clear()
            self._engine.close()
