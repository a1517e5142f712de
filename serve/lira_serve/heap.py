"""How the C library keeps memory that was freed (GNU's; others are left alone).

Pictures of some megabytes come and go with every request, in several threads. By default each thread has a
heap of its own, whose free end goes back to the system at once: every picture then faults its pages in anew.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_FROM, _MAPPED_FROM, _MOST_HEAPS = -1, -3, -8  # mallopt: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX


def share_one_heap() -> None:
    """Let the threads that start from now on share one heap, which keeps at most 64 MB at its free end."""
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.mallopt(_MOST_HEAPS, 1)
        libc.mallopt(_MAPPED_FROM, 32 << 20)
        libc.mallopt(_TRIM_FROM, 64 << 20)
