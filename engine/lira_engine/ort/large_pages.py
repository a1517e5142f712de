"""Weights in large pages: a decode step, which reads all of them, translates 512 times fewer pages."""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lira_engine.system.free_memory import return_free_memory

PAGE = 2 << 20
_WANT_LARGE, _COLLAPSE = 14, 25  # MADV_HUGEPAGE; MADV_COLLAPSE, from Linux 6.1 on
_TRIM_FROM, _MAPPED_FROM, _MOST_MAPPED = -1, -3, -4  # mallopt: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX
_MAPS = Path("/proc/self/maps")


@contextmanager
def large_pages(expected: int) -> Iterator[None]:
    """Let memory that the block allocates and keeps be in large pages, if the system gives them on request
    (Linux, /sys/kernel/mm/transparent_hugepage/enabled madvise or always); else do nothing.

    `expected`: about how many bytes the block keeps. In the main thread it allocates them from memory that
    asked for large pages before its first use, which costs no time. In another thread, whose allocations the
    C library puts elsewhere, they are moved afterwards, in about a second per GB. The content stays.
    """
    libc = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    if libc is None:
        yield
    elif threading.current_thread() is threading.main_thread() and _reserve(libc, expected):
        try:
            yield
        finally:
            _allocate_as_usual(libc)
            return_free_memory()  # what was reserved and not used
    else:
        before = _mappings()
        yield
        for start, end in _mappings() - before:
            # A kernel that does not know the request returns an error and leaves the pages as they are.
            _advise(libc, start, end, _WANT_LARGE)
            _advise(libc, start, end, _COLLAPSE)


def _reserve(libc: ctypes.CDLL, size: int) -> bool:
    """Put `size` bytes that want large pages on top of the main thread's heap, and make every allocation come
    from the heap. Return whether the C library can do it."""
    if not hasattr(libc, "malloc_trim"):  # not GNU's
        return False
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    libc.mallopt(_MOST_MAPPED, 0)
    libc.mallopt(_TRIM_FROM, -1)  # never
    start = libc.malloc(size)
    if not start:
        _allocate_as_usual(libc)
        return False
    _advise(libc, start, start + size, _WANT_LARGE)
    libc.free(start)  # none of it was written: no page is lost
    return True


def _allocate_as_usual(libc: ctypes.CDLL) -> None:
    """Set what the C library comes to by itself once a program has freed a large array."""
    libc.mallopt(_MOST_MAPPED, 1 << 16)
    libc.mallopt(_MAPPED_FROM, 32 << 20)
    libc.mallopt(_TRIM_FROM, 64 << 20)


def _advise(libc: ctypes.CDLL, start: int, end: int, advice: int) -> None:
    start, end = -(-start // PAGE) * PAGE, end // PAGE * PAGE
    if start < end:
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)


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
