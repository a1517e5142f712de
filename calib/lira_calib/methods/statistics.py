"""What calibration learns of the inputs of matmuls: ranges, histograms, channels, and some rows.

Rows are streamed and not kept, but for a sample. Nothing depends on their order: statistics of two parts
merge into those of one pass.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lira_engine.errors import LiraError
from lira_engine.system.atomic import atomic_write

METHODS = ("minmax", "percentile", "entropy")
PERCENTILE = 99.99
"""Share of the values that the range "percentile" holds, both ends together."""

_FORMAT = "lira-statistics"
_BINS = 8192  # of a histogram from -2**k to 2**k: at least half of them are used
_ENTROPY_BINS = 2048  # the library's search takes time by the square of them
_LEVELS = 128  # entropy compares with this many
_PIECE = 1 << 21  # elements at a time: bounds the temporary arrays
_HASHED = 64  # channels that decide whether a row is in the sample
_MULTIPLIER = 0x9E3779B97F4A7C15  # an odd number without pattern: 2**64 / golden ratio


@dataclass(frozen=True)
class _Input:
    """Statistics of one matmul's input. `counts` [_BINS] is a histogram from -threshold to threshold, which
    is a power of two: widening it joins whole bins. `hashes` [n] are those of the `sample` [n, K]."""

    rows: int
    low: float
    high: float
    threshold: float
    lowest: np.ndarray
    highest: np.ndarray
    total: np.ndarray
    counts: np.ndarray
    hashes: np.ndarray
    sample: np.ndarray


class InputStatistics:
    """Statistics of the inputs [R, K] of matmuls, by weight.

    Memory: about 64 KB and `sample_rows` rows for each weight.
    """

    def __init__(self, sample_rows: int = 256) -> None:
        """`sample_rows`: rows that are kept for each weight: those with the smallest hashes, without
        repetitions."""
        self.sample_rows = sample_rows
        self.seen: list[str] = []
        """Keys of the sequences that are counted. Who calibrates appends them, so that it can go on."""
        self._inputs: dict[str, _Input] = {}

    def add(self, weight: str, rows: np.ndarray) -> None:
        """Count rows [R, K] that the matmul with `weight` reads. Raises LiraError if one is not finite."""
        width = rows.shape[-1]
        step = max(1, _PIECE // width)
        rows = rows.reshape(-1, width)
        for start in range(0, len(rows), step):
            piece = self._of_rows(weight, np.ascontiguousarray(rows[start : start + step], np.float32))
            known = self._inputs.get(weight)
            self._inputs[weight] = piece if known is None else _merged(known, piece, self.sample_rows)

    def merge(self, other: InputStatistics) -> None:
        """Count what `other` has counted, as if its rows had been added here."""
        for weight, found in other._inputs.items():
            known = self._inputs.get(weight)
            self._inputs[weight] = found if known is None else _merged(known, found, self.sample_rows)
        self.seen += [key for key in other.seen if key not in self.seen]

    def __iter__(self) -> Iterator[str]:
        return iter(self._inputs)

    def __contains__(self, weight: object) -> bool:
        return weight in self._inputs

    def rows(self, weight: str) -> int:
        """Return how many rows were counted."""
        return self._of(weight).rows

    def low(self, weight: str) -> float:
        """Return the smallest value."""
        return self._of(weight).low

    def high(self, weight: str) -> float:
        """Return the largest value."""
        return self._of(weight).high

    def channel_largest(self, weight: str) -> np.ndarray:
        """Return the largest magnitude of each channel, [K] float32."""
        found = self._of(weight)
        return np.maximum(-found.lowest, found.highest)

    def channel_mean(self, weight: str) -> np.ndarray:
        """Return the mean magnitude of each channel, [K] float32 (AWQ)."""
        found = self._of(weight)
        return (found.total / found.rows).astype(np.float32)

    def sample(self, weight: str) -> np.ndarray:
        """Return rows that were seen, [n, K] float32."""
        return self._of(weight).sample

    def ranges(self, weight: str, method: str) -> tuple[float, float]:
        """Return the smallest and the largest value that a rounded input should hold.

        `method`: "minmax"; "percentile" and "entropy" are those of onnxruntime.quantization, whose range is
        never wider than that. Raises LiraError for other methods and unknown weights.
        """
        found = self._of(weight)
        if method not in METHODS:
            raise LiraError(f"there is no range {method!r}; expected {', '.join(METHODS)}")
        if method == "minmax" or not found.low < found.high:
            return found.low, found.high
        counts = found.counts
        if method == "entropy":
            counts = counts.reshape(_ENTROPY_BINS, -1).sum(axis=1)
        collector = _collector(method)
        edges = np.linspace(-found.threshold, found.threshold, len(counts) + 1, dtype=np.float32)
        extremes = np.float32(found.low), np.float32(found.high)
        collector.histogram_dict = {weight: (counts, edges, *extremes, found.threshold)}
        with contextlib.redirect_stdout(io.StringIO()):  # the library prints its progress
            low, high, *_ = collector.compute_collection_result()[weight]
        return float(low), float(high)

    def smoothed_range(self, weight: str, scale: np.ndarray) -> tuple[float, float]:
        """Return the smallest and the largest value of the input with channels divided by `scale` [K].

        Of the whole input ("minmax"): percentile and entropy need the smoothed rows.
        """
        found = self._of(weight)
        return float((found.lowest / scale).min()), float((found.highest / scale).max())

    def save(self, path: Path) -> None:
        """Write everything to a safetensors file, whose metadata is JSON. A killed run leaves none or all."""
        from safetensors.numpy import save

        arrays, scalars = {}, {}
        for weight, found in self._inputs.items():
            for name in _ARRAYS:
                arrays[f"{weight}/{name}"] = np.ascontiguousarray(getattr(found, name))
            scalars[weight] = {name: getattr(found, name) for name in _SCALARS}
        about = {"sample_rows": self.sample_rows, "seen": self.seen, "inputs": scalars}
        content = save(arrays, metadata={_FORMAT: json.dumps(about)})
        with atomic_write(path) as file:
            file.write(content)

    @classmethod
    def load(cls, path: Path) -> InputStatistics:
        """Return what `save` wrote. Raises LiraError if the file is none of these."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                about = json.loads((file.metadata() or {})[_FORMAT])
                statistics = cls(about["sample_rows"])
                statistics.seen = about["seen"]
                for weight, scalars in about["inputs"].items():
                    arrays = {name: file.get_tensor(f"{weight}/{name}") for name in _ARRAYS}
                    statistics._inputs[weight] = _Input(**scalars, **arrays)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise LiraError(f"{path} holds no statistics of a calibration ({why}): remove it") from None
        return statistics

    def _of(self, weight: str) -> _Input:
        if weight not in self._inputs:
            raise LiraError(f"calibration saw no input of {weight}: it is part of another stage or model")
        return self._inputs[weight]

    def _of_rows(self, weight: str, rows: np.ndarray) -> _Input:
        """Return the statistics of a few rows, [R, K] float32."""
        low, high = float(rows.min()), float(rows.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise LiraError(
                f"the input of {weight} holds values that are not finite: check the pictures and the bundle "
                "with `lira-edge verify`"
            )
        largest = max(-low, high, 1e-30)
        threshold = float(np.exp2(np.ceil(np.log2(1.0001 * largest))))
        return _Input(
            rows=len(rows),
            low=low,
            high=high,
            threshold=threshold,
            lowest=rows.min(axis=0),
            highest=rows.max(axis=0),
            total=np.abs(rows).sum(axis=0, dtype=np.float64),
            counts=np.histogram(rows, _BINS, range=(-threshold, threshold))[0],
            **_sampled(rows, _hashes(rows), self.sample_rows),
        )


def best_range(
    statistics: InputStatistics, weight: str, values: np.ndarray, rounding: str
) -> tuple[str, tuple[float, float]]:
    """Return the method, and its range, by which the matmul with a weight's `values` [K, N] errs least.

    Measured on the sampled rows, with `rounding` as in `rounded`. The first of METHODS wins a tie.
    """
    rows = statistics.sample(weight)
    ranges = {method: statistics.ranges(weight, method) for method in METHODS}
    errors = {
        method: float(np.square((rounded(rows, *found, rounding) - rows) @ values).mean())
        for method, found in ranges.items()
    }
    best = min(errors, key=errors.__getitem__)
    return best, ranges[best]


def rounded(rows: np.ndarray, low: float, high: float, rounding: str) -> np.ndarray:
    """Return rows [R, K] float32 as 8 bits with a range leave them.

    `rounding`: "unsigned", whole steps from low to high with an exact zero (CPU engines); "signed", 127 steps
    on either side of zero (GPU engines); "fp8", E4M3. Raises ValueError for others.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    largest = max(-low, high, 1e-30)
    if rounding == "unsigned":
        step = max(high - low, 1e-30) / 255
        zero = np.rint(-low / step)
        return ((np.rint(rows / step) + zero).clip(0, 255) - zero).astype(np.float32) * np.float32(step)
    if rounding == "signed":
        step = largest / 127
        return np.rint(rows / np.float32(step)).clip(-127, 127) * np.float32(step)
    if rounding == "fp8":
        import ml_dtypes

        step = largest / 448
        small = (rows / np.float32(step)).clip(-448, 448).astype(ml_dtypes.float8_e4m3fn)
        return small.astype(np.float32) * np.float32(step)
    raise ValueError(f"rounding {rounding!r}: expected unsigned, signed or fp8")


_SCALARS = ("rows", "low", "high", "threshold")
_ARRAYS = ("lowest", "highest", "total", "counts", "hashes", "sample")


def _merged(a: _Input, b: _Input, sample_rows: int) -> _Input:
    threshold = max(a.threshold, b.threshold)
    rows, hashes = np.concatenate([a.sample, b.sample]), np.concatenate([a.hashes, b.hashes])
    return _Input(
        rows=a.rows + b.rows,
        low=min(a.low, b.low),
        high=max(a.high, b.high),
        threshold=threshold,
        lowest=np.minimum(a.lowest, b.lowest),
        highest=np.maximum(a.highest, b.highest),
        total=a.total + b.total,
        counts=_widened(a, threshold).counts + _widened(b, threshold).counts,
        **_sampled(rows, hashes, sample_rows),
    )


def _widened(found: _Input, threshold: float) -> _Input:
    """Return the same counts in bins from -threshold to threshold, by joining neighbours."""
    while found.threshold < threshold:
        inner = found.counts.reshape(-1, 2).sum(axis=1)
        counts = np.pad(inner, len(inner) // 2)
        found = replace(found, threshold=2 * found.threshold, counts=counts)
    return found


def _sampled(rows: np.ndarray, hashes: np.ndarray, count: int) -> dict[str, np.ndarray]:
    """Return the rows with the smallest hashes, in this order, each once."""
    smallest, where = np.unique(hashes, return_index=True)
    return {"hashes": smallest[:count], "sample": rows[where[:count]]}


def _hashes(rows: np.ndarray) -> np.ndarray:
    """Return a number for each row [R, K] float32 that depends on its values alone, [R] uint64."""
    some = rows[:, :: -(-rows.shape[1] // _HASHED)]
    bits = np.ascontiguousarray(some).view(np.uint32).astype(np.uint64)
    found = np.zeros(len(rows), np.uint64)
    for column in bits.T:
        found = (found ^ column) * np.uint64(_MULTIPLIER)
        found ^= found >> np.uint64(29)
    return found


def _collector(method: str) -> Any:
    from lira_engine.ort import package  # an error names the line that installs it

    module = importlib.import_module(f"{package.onnxruntime.__name__}.quantization.calibrate")
    return module.HistogramCollector(method, False, _BINS, _LEVELS, PERCENTILE, "same")
