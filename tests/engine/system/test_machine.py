"""Memory as Linux reports it."""

from __future__ import annotations

import pytest

from lira_engine.system import machine


def test_free_swap_counts_as_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_meminfo", lambda: {"MemAvailable": 1 << 20, "SwapFree": 2 << 20})
    assert machine.available_mib() == 3072
    monkeypatch.setattr(machine, "_meminfo", lambda: {"MemAvailable": 1 << 20})
    assert machine.available_mib() == 1024
