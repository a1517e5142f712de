"""Memory as Windows reports it, from a stand-in for its API."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from lira_engine.system import machine
from lira_engine.system.windows_memory import _MemoryStatusEx, windows_memory


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A Windows of 16 GiB, 6 of them free, 10 with the paging file; the list holds whether it answers."""
    answers = [1]

    def status(pointer: Any) -> int:
        found = pointer._obj
        assert found.length == 64  # else Windows refuses
        found.total, found.available, found.available_page = 16 << 30, 6 << 30, 10 << 30
        return answers[0]

    kernel = SimpleNamespace(GlobalMemoryStatusEx=status)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)

    def no_proc() -> dict[str, int]:
        raise FileNotFoundError

    monkeypatch.setattr(machine, "_meminfo", no_proc)
    return answers


def test_memory_is_what_windows_reports(windows: list[int]) -> None:
    assert machine.available_mib() == 10 << 10
    assert machine._memory() == (16.0, 6.0)


def test_memory_is_unknown_if_windows_does_not_report_it(windows: list[int]) -> None:
    windows[0] = 0
    assert windows_memory() is None and machine.available_mib() is None


def test_other_systems_report_none_and_the_layout_is_windows_own() -> None:
    if sys.platform != "win32":
        assert windows_memory() is None
    assert ctypes.sizeof(_MemoryStatusEx) == 64
    assert _MemoryStatusEx.available_page.offset == 32
