"""A KV cache that decode steps read in 8 bits, and passes of many rows in fp32."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from lira_engine.engines.llm_tensors import cache_output, cache_scales
from lira_engine.ort.device import CPU
from lira_engine.ort.kv_cache import OrtKvCache, untouched_zeros
from lira_engine.ort.package import onnxruntime
from lira_engine.ort.session import bind_input, bind_output
from lira_engine.system.machine import usable_cores

MARGIN = 3.0
"""How much larger than the first pass's rows the following ones may be before they are clipped."""
FEW = 64
"""Rows whose conversion is not worth a second thread."""
_LEAST = 1e-12
"""Scale of a channel that is zero."""


class Int8KvCache(OrtKvCache):
    """Keys and values of one sequence, twice: `rows` in fp32, and int8 with a scale for each channel.

    A decode step reads all rows for one token, and in int8 a quarter of the bytes. In a pass of many rows the
    arithmetic decides, and there ONNX Runtime's kernel for int8 is slower than that for fp32, from 8 rows on.
    So the language model's engine reads and writes int8, its graphs for passes of many rows fp32. What one
    wrote is converted when the other needs it.

    Scales are those of the first pass's rows, with room. They stay until the cache is empty, so that an
    answer does not depend on those before it. The first pass must be one of `rows`.
    """

    def __init__(self, session: onnxruntime.InferenceSession, shapes: dict[str, tuple[int, ...]]) -> None:
        self._tensors: list[_Tensor] = []
        self._wide = self._narrow = 0  # rows that `rows` and int8 hold
        self._writes_wide = True
        super().__init__(session, shapes, np.float32, CPU)

    @property
    def measured(self) -> bool:  # type: ignore[override]
        """Whether scales are known: from the first rows on."""
        return self.length > 0

    def _bind(self, arrays: dict[str, np.ndarray]) -> None:
        assert self.binding is not None
        for name, array in arrays.items():
            narrow = untouched_zeros(array.shape, np.int8)
            scales = np.ones(array.shape[1] * array.shape[3], np.float32)
            bind_input(self.binding, name, narrow)
            bind_output(self.binding, cache_output(name), narrow)
            bind_input(self.binding, cache_scales(name), scales)
            self._tensors.append(_Tensor(array[0], narrow[0], scales.reshape(array.shape[1], -1)))

    def fill(self, length: int) -> None:
        if self._writes_wide and self.length == 0 < length:
            self._for_all(length, lambda tensor: tensor.measure(length))
        super().fill(length)
        self._wide = length if self._writes_wide else min(self._wide, length)
        self._narrow = min(self._narrow, length) if self._writes_wide else length

    @property
    def nbytes(self) -> int:
        """Bytes of the pages that were written, in fp32 and in int8, and of the scales."""
        scales = sum(tensor.scales.nbytes for tensor in self._tensors)
        return super().nbytes + self._bytes_as(np.dtype(np.int8)) + scales

    def before_many_rows(self) -> None:
        if self._wide < self.length:
            start, stop = self._wide, self.length
            self._for_all(stop - start, lambda tensor: tensor.widen(start, stop))
        self._wide, self._writes_wide = self.length, True

    def before_few_rows(self) -> None:
        if self._narrow < self.length:
            start, stop = self._narrow, self.length
            self._for_all(stop - start, lambda tensor: tensor.narrow(start, stop))
        self._narrow, self._writes_wide = self.length, False

    def _for_all(self, rows: int, work: Callable[[_Tensor], None]) -> None:
        """Do `work` on every tensor; on all cores if it is about more than a few `rows`."""
        with ThreadPoolExecutor(usable_cores() if rows > FEW else 1) as pool:
            for _ in pool.map(work, self._tensors):
                pass


@dataclass(frozen=True)
class _Tensor:
    """Keys or values of a layer: in fp32 [KV heads, N, D], in int8, and the scales [KV heads, D]."""

    wide: np.ndarray
    codes: np.ndarray
    scales: np.ndarray

    def measure(self, length: int) -> None:
        """Set the scales by the first `length` rows."""
        for head, rows in enumerate(self.wide[:, :length]):
            largest = np.maximum(rows.max(axis=0), -rows.min(axis=0))
            self.scales[head] = np.maximum(largest * (MARGIN / 127), _LEAST)

    def narrow(self, start: int, stop: int) -> None:
        """Round rows to int8, as the operator does."""
        for head, rows in enumerate(self.wide[:, start:stop]):
            scaled = rows / self.scales[head]
            np.clip(np.rint(scaled, out=scaled), -128, 127, out=scaled)
            self.codes[head, start:stop] = scaled

    def widen(self, start: int, stop: int) -> None:
        np.multiply(
            self.codes[:, start:stop], self.scales[:, None], out=self.wide[:, start:stop], dtype=np.float32
        )
