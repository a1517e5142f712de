"""Check memory and threads before torch is loaded: torch ends the process if the system refuses them."""

from __future__ import annotations

import mmap
import threading

from lira_engine.errors import memory_errors_told
from lira_engine.system.machine import usable_cores

LEAST = 1 << 30
"""Bytes of address space: torch, its exporter and ONNX Runtime take 1.4 GiB for lira-nano."""


def check_memory(threads: int | None = None) -> None:
    """Raise OutOfMemory if the system refuses the least memory or threads that torch and ONNX Runtime take.

    ``threads``: of each of the two. None: one per core.
    """
    threads = usable_cores() if threads is None else threads
    over = threading.Event()
    started: list[threading.Thread] = []
    with memory_errors_told():
        with mmap.mmap(-1, LEAST):
            pass
        try:
            for _ in range(2 * (threads - 1)):
                thread = threading.Thread(target=over.wait, daemon=True)
                thread.start()
                started.append(thread)
        finally:
            over.set()
            for thread in started:
                thread.join()
