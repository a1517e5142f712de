"""Weights in large pages of memory: a step reads all of them, and looks up 512 times fewer addresses."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PAGE = 2 << 20
_WANT_LARGE, _COLLAPSE = 14, 25  # MADV_HUGEPAGE; MADV_COLLAPSE, from Linux 6.1 on
_MAPS = Path("/proc/self/maps")


@contextmanager
def large_pages() -> Iterator[None]:
    """Memory that the block takes and keeps goes into large pages afterwards, where the system gives them on
    request (Linux, /sys/kernel/mm/transparent_hugepage/enabled madvise or always); else nothing happens.

    What lies there does not change. It is for allocations of megabytes, and takes about a second per GB.
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
            # A system that does not know the request says so and leaves the pages as they are.
            madvise(start, end - start, _WANT_LARGE)
            madvise(start, end - start, _COLLAPSE)


def _mappings() -> set[tuple[int, int]]:
    """(start, end) of the process's own writable memory that no file stands behind."""
    found = set()
    with suppress(OSError):
        for line in _MAPS.read_text(encoding="utf-8").splitlines():
            addresses, access, _, _, inode, *path = line.split(maxsplit=5)
            if access == "rw-p" and inode == "0" and (not path or path[0] == "[heap]"):
                start, _, end = addresses.partition("-")
                found.add((int(start, 16), int(end, 16)))
    return found
