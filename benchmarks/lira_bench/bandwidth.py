"""How fast this machine reads its memory: what bounds a decoding step, which reads every weight once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lira_engine.system.machine import usable_cores

_BYTES = 512 * 2**20  # many times the caches of the machines that this runs on
_REPEATS = 5


def read_bandwidth(threads: int | None = None) -> float:
    """GB/s (10^9 bytes) that `threads` threads read together, one per usable core by default.

    The best of a few passes over half a gigabyte; takes that much memory and about a second. What else runs
    on the machine lowers it. Raises ValueError for fewer than one thread.
    """
    count = usable_cores() if threads is None else threads
    if count < 1:
        raise ValueError(f"{threads} threads; expected 1 or more")
    # Ones, not zeros: untouched pages of zeros are all the same page, which the cache holds.
    parts = np.array_split(np.ones(_BYTES // 8, np.int64), count)
    with ThreadPoolExecutor(count) as pool:
        best = min(_seconds(pool, parts) for _ in range(_REPEATS))
    return _BYTES / best / 1e9


def _seconds(pool: ThreadPoolExecutor, parts: list[np.ndarray]) -> float:
    started = time.perf_counter()
    # Reads everything, writes nothing, and does not hold the interpreter's lock.
    list(pool.map(np.max, parts))
    return time.perf_counter() - started
