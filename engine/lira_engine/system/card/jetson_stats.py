"""Sensors of a Jetson board by jetson-stats, whose service `jtop` reads them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any, Literal

from lira_engine.errors import LiraError, memory_errors_told
from lira_engine.system.card.sensors import Facts, Reading, Source
from lira_engine.system.machine import Jetson

_SECONDS = 1.0
"""The service's own pace, unless another program asked it for another one: it reads more than is needed here,
on the cores of the board."""
_MHZ_UNTIL = 10_000
"""Clocks are kHz, but those that the service has from NVML (Jetson Thor) are MHz. No GPU runs at 10 MHz."""


def open_jetson_stats(board: Jetson) -> JetsonStats:
    """Open the sensors of this board.

    Raises LiraError if jetson-stats is not importable here, or its service does not answer.
    """
    try:
        with memory_errors_told():
            module = importlib.import_module("jtop")
    except ImportError:
        raise LiraError("jetson-stats is not installed: sudo pip3 install -U jetson-stats") from None
    jetson = module.jtop(interval=_SECONDS)
    try:
        jetson.start()
    except (module.JtopException, OSError) as error:
        reason = " ".join(str(error).split())
        raise LiraError(f"jetson-stats does not answer ({reason})") from None
    return JetsonStats(jetson, module.JtopException, board)


class JetsonStats:
    """Sensors by jetson-stats. Power is the board's: of its input, or of the rails that are measured, added
    up."""

    source: Source = "jetson-stats"
    power_of: Literal["card", "board"] = "board"

    def __init__(self, jetson: Any, failure: type[Exception], board: Jetson) -> None:
        """`jetson`: a started `jtop`. `failure`: what it raises when its service is gone."""
        self._jetson = jetson
        # Boards lack keys, and the service changed their shapes before version 4.2.
        self._errors = (failure, OSError, EOFError, LookupError, TypeError, AttributeError, ValueError)
        hardware = self._value(lambda: jetson.board["hardware"]) or {}  # waits until the service has found it
        self.facts = Facts(board.model, None, f"L4T {board.l4t}", hardware.get("CUDA Arch BIN") or None)

    def read(self) -> Reading:
        jetson = self._jetson
        if not self._value(lambda: jetson.ok(spin=True)):
            return Reading()
        return Reading(
            clock_mhz=_mhz(self._value(lambda: self._gpu()["freq"]["cur"])),
            memory_clock_mhz=_mhz(self._value(lambda: jetson.memory["EMC"]["cur"])),
            power_w=self._value(lambda: jetson.power["tot"]["power"] / 1000),
            temperature_c=self._value(self._temperature),
            own_mib=self._value(self._own_mib),
        )

    def energy_j(self) -> float | None:
        return None

    def busy(self) -> float | None:
        if not self._value(lambda: self._jetson.ok(spin=True)):
            return None
        found: float | None = self._value(lambda: self._gpu()["status"]["load"] / 100)
        return found

    def others(self) -> Mapping[str, float] | None:
        return None

    def close(self) -> None:
        self._jetson.close()

    def _gpu(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = next(
            gpu for gpu in self._jetson.gpu.values() if gpu["type"] == "integrated"
        )
        return found

    def _temperature(self) -> float:
        """Return that of the GPU; boards write its name in small or in large letters."""
        found: float = next(
            sensor["temp"]
            for name, sensor in self._jetson.temperature.items()
            if name.lower() == "gpu" and sensor["online"]
        )
        return found

    def _own_mib(self) -> float | None:
        """Return what this process has of the board's memory for the GPU; None in a container, where it has
        another number."""
        own = [program[8] / 1024 for program in self._jetson.processes if program[0] == os.getpid()]
        return sum(own) if own else None

    def _value(self, ask: Any) -> Any:
        try:
            return ask()
        except (StopIteration, *self._errors):
            return None


def _mhz(clock: float | None) -> float | None:
    if not clock:  # 0 is a clock that the service could not read
        return None
    return clock / 1000 if clock > _MHZ_UNTIL else float(clock)
