"""What a prediction knows of a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

THIS_MACHINE = "this-machine"
Family = Literal["orin", "thor", "rtx", "cpu-avx2", "cpu-avx512-vnni", "cpu-other"]
"""Devices that reach like shares of their figures (`efficiency.EFFICIENCY`): CPUs by instruction set."""
Kind = Literal["gpu", "cpu"]


@dataclass(frozen=True)
class Device:
    """A device.

    Attributes:
        memory_gib: all memory; on Jetson boards the CPU and the system share it.
        bandwidth: of its memory, GB/s.
        fp32, fp16: peak of dense matmuls, 10^12 operations a second; fp16 accumulates in fp32. Zero: none.
        int8: the same for 8-bit integers.
        int4: peak of matmuls with 4-bit weights, if it was measured; None means that of fp16.
        watts: limits of the power modes, the least first; the figures are those of the last. Empty: unknown.
        source: of the figures. derived: those that are not in it, and how they follow.
    """

    name: str
    title: str
    family: Family
    memory_gib: float
    bandwidth: float
    fp32: float
    fp16: float
    int8: float
    watts: tuple[float, ...]
    source: str
    derived: str
    int4: float | None = None

    @property
    def kind(self) -> Kind:
        return "cpu" if self.family.startswith("cpu-") else "gpu"

    @property
    def power(self) -> str:
        """Return the power modes, such as "7/15/25"."""
        return "/".join(f"{one:g}" for one in self.watts) or "unknown"
