"""Weights in large pages: a decode step, which reads all of them, translates 512 times fewer pages."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PAGE = 2 << 20
_WANT_LARGE, _COLLAPSE = 14, 25  # MADV_HUGEPAGE; MADV_COLLAPSE, from Linux 6.1 on
_MAPS = Path("/proc/self/maps")


@contextmanager
def large_pages() -> Iterator[None]:
    """Move memory that the block allocates and keeps into large pages, if the system gives them on request
    (Linux, /sys/kernel/mm/transparent_hugepage/enabled madvise or always); else do nothing.

    The memory's content stays. For allocations of megabytes; takes about a second per GB.
    """
    before = _mappings()
    yield
    if not sys.platform.startswith("linux"):
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in _mappings() - before:
        start, end = -(-start // PAGE) * PAGE, end // PAGE * PAGE
        if start < end:
            # A kernel that does not know the request returns an error and leaves the pages as they are.
            madvise(start, end - start, _WANT_LARGE)
            madvise(start, end - start, _COLLAPSE)


def large_buffer(size: int) -> memoryview:
    """Return zeroed memory, in large pages if the system gives them on request."""
    memory = mmap.mmap(-1, size)
    if sys.platform.startswith("linux"):
        with suppress(OSError):  # a kernel without large pages
            memory.madvise(_WANT_LARGE)
    return memoryview(memory)


def _mappings() -> set[tuple[int, int]]:
    """Return (start, end) of the process's private writable mappings that no file backs."""
    found = set()
    with suppress(OSError):
        for line in _MAPS.read_text(encoding="utf-8").splitlines():
            addresses, access, _, _, inode, *path = line.split(maxsplit=5)
            if access == "rw-p" and inode == "0" and (not path or path[0] == "[heap]"):
                start, _, end = addresses.partition("-")
                found.add((int(start, 16), int(end, 16)))
    return found
