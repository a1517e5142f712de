"""Keys and values of a sequence in ONNX Runtime's memory, which a pass updates in place."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from lira_engine.engines.llm_tensors import cache_output, length_inputs, lengths
from lira_engine.engines.runner import CountedRows
from lira_engine.ort.device import Device
from lira_engine.ort.gpu_errors import gpu_errors_told
from lira_engine.ort.package import onnxruntime
from lira_engine.ort.session import bind_input
from lira_engine.ort.step_graph import Rows, StepGraph


class OrtKvCache(CountedRows):
    """Keys and values of one sequence, in the device's memory.

    Each layer's cache input and output are bound once, to the same memory, so that a pass writes its own rows
    and copies none. On a CPU a cache takes memory for the most rows that it ever held, not for its capacity.
    The cache is usable until its language model is closed.

    Attributes:
        rows: keys and values by the names of their inputs, as passes of many rows read and write them.
        step: its captured decode step, if there is one.
        measured: whether a pass of few rows can follow.
    """

    measured = True

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        shapes: dict[str, tuple[int, ...]],
        dtype: type[np.number],
        device: Device,
        step: StepGraph | None = None,
    ) -> None:
        """`step`: a captured decode step, on whose rows the cache is."""
        super().__init__(next(iter(shapes.values()))[2])
        self._shapes, self._dtype = tuple(shapes.values()), np.dtype(dtype)
        self._grows = device.memory == "cpu"
        self._most = 0  # rows that it ever held
        inputs = {tensor.name for tensor in session.get_inputs()}
        # A pass reads this memory, so it stays.
        self._lengths = {name: array for name, array in length_inputs(0, 1).items() if name in inputs}
        self.binding: onnxruntime.IOBinding | None = session.io_binding()
        self.step = step
        with gpu_errors_told(device):
            arrays = {} if step is not None else zeros_for(shapes, dtype, device)
            self.rows = on_device(arrays, device) if step is None else step.rows
            self._bind(arrays)

    def _bind(self, arrays: dict[str, np.ndarray]) -> None:
        """Bind what the language model's engine reads. `arrays`: the memory of `rows` on a CPU."""
        assert self.binding is not None
        for name, rows in self.rows.items():
            self.binding.bind_ortvalue_input(name, rows)
            self.binding.bind_ortvalue_output(cache_output(name), rows)

    def fill(self, length: int) -> None:
        super().fill(length)
        self._most = max(self._most, length)

    @property
    def nbytes(self) -> int:
        """Bytes on the device; on a CPU those of the pages that were written."""
        return self._bytes_as(self._dtype)

    def _bytes_as(self, dtype: np.dtype) -> int:
        """Return what the cache takes, or would take with rows of another dtype."""
        rows = self._most if self._grows else self.capacity
        return sum(
            shape[1] * min(pages(rows * shape[3] * dtype.itemsize), shape[2] * shape[3] * dtype.itemsize)
            for shape in self._shapes
        )

    def before_many_rows(self) -> None:
        """Complete `rows`, for a pass that reads and writes them."""

    def before_few_rows(self) -> None:
        """Complete what the language model's engine reads, for a pass of it."""

    def bind_lengths(self, rows: int) -> None:
        """Bind what tells where the next pass, of `rows`, begins."""
        assert self.binding is not None
        values = lengths(self.length, rows)
        for name, array in self._lengths.items():
            array[0] = values[name]
            bind_input(self.binding, name, array)


def zeros_for(
    shapes: Mapping[str, tuple[int, ...]], dtype: type[np.number], device: Device
) -> dict[str, np.ndarray]:
    """Return what an empty cache holds. Zeros: a masked row has weight 0, and 0 times NaN is NaN."""
    zeros = untouched_zeros if device.memory == "cpu" else np.zeros
    return {name: zeros(shape, dtype) for name, shape in shapes.items()}


def on_device(arrays: Mapping[str, np.ndarray], device: Device) -> Rows:
    """Return arrays in the device's memory; on a CPU it is their own."""
    return {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(array, device.memory, 0)
        for name, array in arrays.items()
    }


def empty_rows(shapes: Mapping[str, tuple[int, ...]], dtype: type[np.number], device: Device) -> Rows:
    """Return the memory of an empty cache."""
    return on_device(zeros_for(shapes, dtype, device), device)


def pages(size: int) -> int:
    """Return the bytes of the memory pages that `size` bytes take."""
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE


def untouched_zeros(shape: tuple[int, ...], dtype: type[np.number]) -> np.ndarray:
    """Return zeros that take memory page by page, as they are written.

    A head's rows are 2 MiB in true sizes: numpy asks Linux for large pages, which take all of them at the
    first row. Attention is as fast on small ones.
    """
    if sys.platform != "linux":
        return np.zeros(shape, dtype)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without large pages
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype).reshape(shape)
