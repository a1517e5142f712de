"""The bandwidth of the memory that engines read, which bounds a decode step: it reads every weight once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lira_engine.cuda.driver import Buffer, Driver, Stream
from lira_engine.system.cores import default_threads
from lira_engine.system.machine import usable_cores

_BYTES = 512 * 2**20  # many times the caches of the machines that this runs on
_REPEATS = 5
_COPIES = 8  # in a pass on a GPU: to wait for it takes little beside them


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


def copy_bandwidth(driver: Driver) -> float:
    """Return the GB/s (10^9 bytes, read plus written) at which a GPU copies half a gigabyte in its memory.

    The best of a few passes; takes twice that memory and less than two seconds. A GPU has no other way to
    measure this without a kernel of its own; reading alone may be somewhat faster.
    Raises LiraError if the GPU has no room, or fails.
    """
    with driver.current():
        stream = driver.stream()
        source = driver.allocate(_BYTES)
        try:
            to = driver.allocate(_BYTES)
            try:
                driver.zero(source, stream)
                _copy_seconds(driver, to, source, stream)  # the first pass sets things up
                best = min(_copy_seconds(driver, to, source, stream) for _ in range(_REPEATS))
            finally:
                to.free()
        finally:
            source.free()
    return 2 * _COPIES * _BYTES / best / 1e9


def _copy_seconds(driver: Driver, to: Buffer, source: Buffer, stream: Stream) -> float:
    stream.synchronize()
    started = time.perf_counter()
    for _ in range(_COPIES):
        driver.copy(to, source, _BYTES, stream)
    stream.synchronize()
    return time.perf_counter() - started
