"""The read bandwidth of this machine's memory, which bounds a decode step: it reads every weight once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lira_engine.system.cores import default_threads
from lira_engine.system.machine import usable_cores

_BYTES = 512 * 2**20  # many times the caches of the machines that this runs on
_REPEATS = 5


def read_bandwidth(threads: int | None = None) -> float:
    """Return the GB/s (10^9 bytes) that `threads` threads read together; default: as many as engines take.

    The best of a few passes over half a gigabyte; takes that much memory and about a second. Other programs
    that run meanwhile lower it. Raises ValueError for fewer than one thread.
    """
    count = (default_threads() or usable_cores()) if threads is None else threads
    if count < 1:
        raise ValueError(f"{threads} threads; expected 1 or more")
    # Ones, because untouched pages of zeros are all one physical page, which stays in the cache.
    parts = np.array_split(np.ones(_BYTES // 8, np.int64), count)
    with ThreadPoolExecutor(count) as pool:
        best = min(_seconds(pool, parts) for _ in range(_REPEATS))
    return _BYTES / best / 1e9


def _seconds(pool: ThreadPoolExecutor, parts: list[np.ndarray]) -> float:
    started = time.perf_counter()
    # np.max reads everything, writes nothing, and releases the GIL.
    list(pool.map(np.max, parts))
    return time.perf_counter() - started
