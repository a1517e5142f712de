"""Sensors by nvidia-smi, a program that comes with the driver. It tells less than NVML: neither why the clock
is held down, nor which program uses what."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Literal

from lira_engine.errors import LiraError
from lira_engine.system.card.first_gpu import FirstGpu
from lira_engine.system.card.sensors import Facts, Reading, Source
from lira_engine.system.machine import gpus, query_gpus

_FIELDS = (
    "name", "memory.total", "driver_version", "clocks.sm", "clocks.mem", "power.draw", "temperature.gpu",
    "memory.used", "utilization.gpu",
)  # fmt: skip
_SECONDS = 1.0
"""From one run of the program to the next: each takes a part of a core."""


def open_nvidia_smi(gpu: FirstGpu) -> NvidiaSmi:
    """Open the sensors of this GPU, or of the only one.

    Raises LiraError if nvidia-smi is missing or fails, or names several GPUs and none was asked for.
    """
    options = ("-i", f"GPU-{gpu.uuid}") if gpu.uuid else ()
    lines = _lines(options)
    if len(lines) != 1:
        which = "which GPU CUDA shows first" if lines else "what its sensors read"
        raise LiraError(f"nvidia-smi does not tell {which}")
    return NvidiaSmi(options, lines[0])


class NvidiaSmi:
    """Sensors by a new nvidia-smi every second; until then it repeats what it read."""

    source: Source = "nvidia-smi"
    power_of: Literal["card", "board"] = "card"

    def __init__(self, options: tuple[str, ...], values: list[str]) -> None:
        """`values`: what the program told with these options."""
        self._options, self._values, self._at = options, values, time.monotonic()
        name, memory, driver = values[:3]
        total = _number(memory)
        known = next((one.compute_capability for one in gpus() if one.name == name), None)
        self.facts = Facts(name, None if total is None else int(total), driver, known)

    def read(self) -> Reading:
        clock, memory_clock, power, temperature, used = map(_number, self._now()[3:8])
        return Reading(clock, memory_clock, power, temperature, used_mib=used)

    def energy_j(self) -> float | None:
        return None

    def busy(self) -> float | None:
        self._at -= _SECONDS  # not what it was some time ago
        percent = _number(self._now()[8])
        return None if percent is None else percent / 100

    def others(self) -> Mapping[str, float] | None:
        return None

    def close(self) -> None:
        pass

    def _now(self) -> list[str]:
        if time.monotonic() - self._at >= _SECONDS:
            lines = _lines(self._options)
            self._values = lines[0] if lines else [""] * len(_FIELDS)
            self._at = time.monotonic()
        return self._values


def _lines(options: tuple[str, ...]) -> list[list[str]]:
    lines = [line.split(", ") for line in query_gpus(",".join(_FIELDS), *options)]
    return [values for values in lines if len(values) == len(_FIELDS)]


def _number(text: str) -> float | None:
    """Return the number of "1980 MHz"; None of "[N/A]" and "[Not Supported]"."""
    try:
        return float(text.split()[0])
    except (ValueError, IndexError):
        return None
