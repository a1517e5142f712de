"""A block's allocations are in large pages, and do not change."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lira_engine.ort import large_pages as module
from lira_engine.ort.large_pages import PAGE, large_pages
from lira_engine.system.free_memory import return_free_memory

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
GIVEN = pytest.mark.skipif(
    not SETTING.exists() or "[never]" in SETTING.read_text(), reason="no large pages here"
)
GNU = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "malloc_trim")


def of_this_process(what: str) -> int:
    """Return bytes of this process's memory, by a name of /proc/self/smaps_rollup."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return next(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith(what))


def in_heap(array: np.ndarray) -> bool:
    """Return whether memory is part of the heap, and no mapping of its own."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    heap = next(line.split()[0] for line in lines if line.endswith("[heap]"))
    start, end = (int(part, 16) for part in heap.split("-"))
    return start <= array.ctypes.data < end


@contextmanager
def allocated(size: int) -> Iterator[np.ndarray]:
    """Yield `size` bytes that the C library gives, as ONNX Runtime asks it for a weight."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    start = libc.malloc(size)
    try:
        yield np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(start))
    finally:
        libc.free(start)


def in_a_new_process(call: str) -> list[str]:
    """Return what a function of this file returns there: the heap of an old process may have met a mapping
    and grow elsewhere."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
    code += f"import {Path(__file__).stem} as test; print(*test.{call})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@GIVEN
@pytest.mark.skipif(not GNU, reason="not GNU's C library")
def test_memory_of_the_main_thread_is_in_large_pages_from_its_first_use() -> None:
    found = [int(size) for size in in_a_new_process("large_bytes_of_the_main_thread()")]
    assert min(found) >= 10 * PAGE, found


def large_bytes_of_the_main_thread() -> tuple[int, int, int]:
    """Return how much of 12 large pages is in large pages in the block and after it, and is given back."""
    module._COLLAPSE = -1  # nothing may move
    before = of_this_process("AnonHuge")
    with large_pages(16 * PAGE):
        weight = allocated(12 * PAGE)
        array = weight.__enter__()
        array[:] = 7
        inside = of_this_process("AnonHuge") - before
    assert np.all(array == 7)
    after = of_this_process("AnonHuge") - before
    resident = of_this_process("Rss")
    weight.__exit__(None, None, None)
    return_free_memory()
    return inside, after, resident - of_this_process("Rss")


@pytest.mark.skipif(not GNU, reason="not GNU's C library")
def test_large_arrays_are_mapped_again_after_the_block() -> None:
    assert in_a_new_process("places_of_large_arrays()") == ["True", "False"]


def places_of_large_arrays() -> tuple[bool, bool]:
    """Return whether an array is in the heap, in the block and after it."""
    with large_pages(PAGE), allocated(64 << 20) as array:
        inside = in_heap(array)
    with allocated(64 << 20) as array:
        return inside, in_heap(array)


@GIVEN
def test_memory_of_another_thread_moves_into_large_pages() -> None:
    before, found = of_this_process("AnonHuge"), []

    def work() -> None:
        with large_pages(16 * PAGE):
            memory = mmap.mmap(-1, 16 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            found.append(np.frombuffer(memory, np.uint8))
            found[0][:] = 7

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert np.all(found[0] == 7)
    release = tuple(int(part) for part in Path("/proc/sys/kernel/osrelease").read_text().split(".")[:2])
    if release >= (6, 1):
        assert of_this_process("AnonHuge") - before >= 12 * PAGE


@pytest.mark.skipif(not GNU, reason="not GNU's C library")
def test_more_than_the_system_has_is_not_reserved() -> None:
    with large_pages(1 << 62), allocated(8) as array:
        array[:] = 1
    assert array.size == 8


def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_MAPS", tmp_path / "none")
    monkeypatch.setattr(sys, "platform", "win32")
    with large_pages(PAGE):
        array = np.ones(8)
    return_free_memory()
    assert array.sum() == 8
