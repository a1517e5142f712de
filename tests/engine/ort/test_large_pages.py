"""A block's allocations move into large pages without changing."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from lira_engine.ort import large_pages as module
from lira_engine.ort.large_pages import PAGE, large_pages

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def large_bytes() -> int:
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return next(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("AnonHuge"))


@pytest.mark.skipif(not SETTING.exists() or "[never]" in SETTING.read_text(), reason="no large pages here")
def test_a_blocks_allocations_move_into_large_pages() -> None:
    before = large_bytes()
    with large_pages():
        memory = mmap.mmap(-1, 16 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        array = np.frombuffer(memory, np.uint8)
        array[:] = 7
    assert np.all(array == 7)
    release = tuple(int(part) for part in Path("/proc/sys/kernel/osrelease").read_text().split(".")[:2])
    if release >= (6, 1):
        assert large_bytes() - before >= 12 * PAGE
    del array
    memory.close()


def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_MAPS", tmp_path / "none")
    monkeypatch.setattr(sys, "platform", "win32")
    with large_pages():
        array = np.ones(8)
    assert array.sum() == 8
