"""What sensors tell, whatever library reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

Source = Literal["nvidia-ml-py", "jetson-stats", "nvidia-smi"]


@dataclass(frozen=True)
class Facts:
    """What does not change; None where it is not told.

    Attributes:
        memory_mib: of the card, or of the part of it that CUDA shows; None on a board, whose GPU has no
            memory of its own. compute_capability: such as "8.9".
    """

    name: str | None = None
    memory_mib: int | None = None
    driver: str | None = None
    compute_capability: str | None = None


@dataclass(frozen=True)
class Reading:
    """One look at the sensors; None where they do not tell.

    Attributes:
        clock_mhz, memory_clock_mhz: of the processors and of the memory.
        throttled: what holds the clock below its highest, in words.
        own_mib, used_mib: memory on the card, or of a board for its GPU, of this process and of all programs.
    """

    clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_w: float | None = None
    temperature_c: float | None = None
    throttled: frozenset[str] | None = None
    own_mib: float | None = None
    used_mib: float | None = None


class Sensors(Protocol):
    """The sensors of one GPU. No method but `close` raises anything: what fails is None."""

    @property
    def source(self) -> Source: ...

    @property
    def power_of(self) -> Literal["card", "board"]:
        """Whose power and energy these are."""
        ...

    @property
    def facts(self) -> Facts: ...

    def read(self) -> Reading: ...

    def energy_j(self) -> float | None:
        """Return joules since some moment in the past."""
        ...

    def busy(self) -> float | None:
        """Return in which share of the last second, or less, any program ran something on the GPU."""
        ...

    def others(self) -> Mapping[str, float] | None:
        """Return by name which share of the GPU other programs used in the last moments; those that used
        none may be missing."""
        ...

    def close(self) -> None: ...
