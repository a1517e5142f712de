"""Which sensors are opened where, and what is loaded for that."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from lira_engine.errors import LiraError
from lira_engine.system.card import opening
from lira_engine.system.machine import Jetson

BOARD = Jetson("Jetson", "36.4", None)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ways that work; the fixture's functions return their names."""
    working: list[str] = []

    def way(name: str) -> Any:
        def open_it(what: object) -> str:
            if name not in working:
                raise LiraError(f"no {name} of {what}")
            return name

        return open_it

    for name in ("jetson_stats", "nvml", "nvidia_smi"):
        monkeypatch.setattr(opening, f"open_{name}", way(name))
    monkeypatch.setattr(opening, "first_gpu", lambda: "a GPU")
    return working


@pytest.mark.parametrize(
    ("board", "on_gpu", "working", "found"),
    [
        (None, True, ["nvidia_smi", "nvml"], "nvml"),
        (None, True, ["nvidia_smi"], "nvidia_smi"),
        (BOARD, True, ["nvml", "jetson_stats"], "jetson_stats"),
        (BOARD, True, ["nvml"], "nvml"),
        (BOARD, False, ["nvml", "jetson_stats"], "jetson_stats"),
        (None, False, ["nvml", "nvidia_smi"], None),
    ],
)
def test_the_best_of_what_is_there(
    ways: list[str],
    monkeypatch: pytest.MonkeyPatch,
    board: Jetson | None,
    on_gpu: bool,
    working: list[str],
    found: str | None,
) -> None:
    ways += working
    monkeypatch.setattr(opening, "jetson", lambda: board)
    assert opening.open_sensors(on_gpu) == found


def test_without_any_each_way_says_why(ways: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "jetson", lambda: None)
    with pytest.raises(LiraError, match=r"^no nvml of a GPU; no nvidia_smi of a GPU$"):
        opening.open_sensors(True)
    monkeypatch.setattr(opening, "jetson", lambda: BOARD)
    with pytest.raises(LiraError, match=r"^no jetson_stats of Jetson"):
        opening.open_sensors(False)


def test_for_engines_on_a_cpu_nothing_of_a_gpu_is_loaded() -> None:
    code = """
import ctypes, sys
from lira_engine.system import machine
machine.jetson = lambda: None
from lira_engine.system.card import opening
opening.jetson = machine.jetson
ctypes.CDLL = None
assert opening.open_sensors(False) is None
print([name for name in ("pynvml", "jtop") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
