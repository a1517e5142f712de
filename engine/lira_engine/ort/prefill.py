"""Run the language model's decoder layers over many rows, a layer at a time, with weights from a file.

See lowering.prefill for why. Only one layer's weights are in memory at a time.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from lira_engine.engines.llm_tensors import (
    ALIGNMENT,
    HIDDEN_OUT,
    LAYER_ALIGNMENT,
    LAYERS,
    PASS_INPUTS,
    prefill_file,
)
from lira_engine.errors import LiraError
from lira_engine.ort.kv_cache import OrtKvCache
from lira_engine.ort.large_pages import large_buffer
from lira_engine.ort.package import onnxruntime
from lira_engine.ort.run_errors import run_errors_told
from lira_engine.ort.session import bind_input, bind_output, open_session

LEAST_ROWS = 80
"""Rows from which on a pass layer by layer takes less time than one of the language model's own engine."""
CHUNK = 768
"""Most rows at once: their intermediate tensors stay in the processor's caches."""
_DTYPES = {"tensor(int8)": np.int8, "tensor(float)": np.float32}


class OrtPrefill:
    """Fills a KV cache's rows. Makes no logits."""

    def __init__(self, folder: Path, layers: int, threads: int | None = None) -> None:
        """Open the graphs in `folder`, if there are any, for a model of so many layers. Raises LiraError if
        they are not those of a build."""
        groups: list[_Layers] = []
        while (file := folder / prefill_file(len(groups))).exists():
            groups.append(_Layers(file, threads))
        self._by_layer = {layer: group for group in groups for layer in group.layers}
        self._lock = threading.Lock()  # all passes read weights into one buffer
        if groups and sorted(self._by_layer) != list(range(layers)):
            raise LiraError(f"{folder} lacks layers of the language model: build it again")

    def __bool__(self) -> bool:
        return bool(self._by_layer)

    def fill(self, embeds: np.ndarray, cache: OrtKvCache) -> None:
        """Append `embeds` [S, C] float32 to the sequence in `cache`, which has room for them. Threads wait
        for each other."""
        cache.before_many_rows()
        rows, made = embeds.copy(), np.empty_like(embeds)  # a layer reads one, and writes the other
        count = -(-len(rows) // CHUNK)
        edges = [len(rows) * i // count for i in range(count + 1)]
        with self._lock:
            for layer, group in sorted(self._by_layer.items()):
                group.run(layer, rows, made, edges, cache)
                rows, made = made, rows
        cache.fill(cache.length + len(rows))

    def close(self) -> None:
        with self._lock:
            self._by_layer = {}


@dataclass(frozen=True)
class _Weight:
    """An input of a layer's graph, and where a layer has its values."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int


class _Layers:
    """Decoder layers that share a graph.

    Attributes:
        layers: their numbers.
    """

    def __init__(self, file: Path, threads: int | None) -> None:
        self._file, self._session = file, open_session(file, threads, reuse=True)
        layers = self._session.get_modelmeta().custom_metadata_map.get(LAYERS, "").split(",")
        if not all(layer.isdecimal() for layer in layers):
            raise LiraError(f"{file} does not say which layers it is for: build it again")
        self.layers = [int(layer) for layer in layers]
        self._makes_rows = HIDDEN_OUT in {tensor.name for tensor in self._session.get_outputs()}
        weights, size = _layout(self._session, file)
        self._stride = -(-size // LAYER_ALIGNMENT) * LAYER_ALIGNMENT
        self._data = file.with_suffix(".data").open("rb", buffering=0)
        expected, found = self._stride * (len(self.layers) - 1) + size, os.fstat(self._data.fileno()).st_size
        if found != expected:
            raise LiraError(f"{self._data.name} has {found} bytes, expected {expected}: build it again")
        # Kernels that pack 16 columns at a time read all over it: from pages of 4 KiB they take half as long
        # again, so it is no mapping of the file.
        self._layer = large_buffer(size)
        self._binding = self._session.io_binding()
        for weight in weights:
            array = np.frombuffer(self._layer, weight.dtype, int(np.prod(weight.shape)), weight.offset)
            bind_input(self._binding, weight.name, array.reshape(weight.shape))

    def run(
        self, layer: int, rows: np.ndarray, made: np.ndarray, edges: list[int], cache: OrtKvCache
    ) -> None:
        """Read rows [S, C] of the layer before, write those of this one into `made`, and fill the cache."""
        binding = self._binding
        self._read(self.layers.index(layer))
        for kind in ("key_cache", "value_cache"):
            binding.bind_ortvalue_input(kind, cache.rows[f"{kind}.{layer}"])
            binding.bind_ortvalue_output(f"{kind}_out", cache.rows[f"{kind}.{layer}"])
        with run_errors_told(self._file):
            for start, stop in pairwise(edges):
                position = np.array([cache.length + start], np.int64)
                bind_input(binding, "position", position)
                bind_input(binding, "hidden", rows[None, start:stop])
                if self._makes_rows:
                    bind_output(binding, HIDDEN_OUT, made[None, start:stop])
                self._session.run_with_iobinding(binding)

    def _read(self, number: int) -> None:
        """Read a layer's weights. Raises LiraError if the file was cut meanwhile."""
        self._data.seek(number * self._stride)
        if self._data.readinto(self._layer) != len(self._layer):
            raise LiraError(f"{self._data.name} ends early: build it again")


def _layout(session: onnxruntime.InferenceSession, file: Path) -> tuple[list[_Weight], int]:
    """Return the weights in the order in which they lie in the data, and a layer's bytes. Raises LiraError,
    which names `file`, for inputs that are none."""
    weights, end = [], 0
    for tensor in session.get_inputs():
        if tensor.name in PASS_INPUTS:
            continue
        if tensor.type not in _DTYPES or not all(isinstance(size, int) for size in tensor.shape):
            raise LiraError(f"{file}: {tensor.name} is a {tensor.type} {tensor.shape}: build it again")
        dtype, shape = np.dtype(_DTYPES[tensor.type]), tuple(tensor.shape)
        weights.append(_Weight(tensor.name, dtype, shape, -(-end // ALIGNMENT) * ALIGNMENT))
        end = weights[-1].offset + int(np.prod(shape)) * dtype.itemsize
    return weights, end
