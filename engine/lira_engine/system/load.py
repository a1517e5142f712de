"""What other programs did with the processor's cores while something was timed (Linux)."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QUIET = 0.1
"""Cores: what a system's own services take. More than that is a disturbance."""

_PROC = Path("/proc")
_SHORTEST = 0.4  # seconds; the system counts in steps of 10 ms per core
_NAMED = 3
_WORTH_NAMING = 0.05  # cores


@dataclass(frozen=True)
class Reading:
    """Processor seconds so far, at a moment `at` (seconds of a clock).

    Attributes:
        cores: that this process may run on; the others do not count. busy: of all programs on these cores.
        stolen: that the hypervisor gave to other machines. own: of this process and those that it started.
        programs: of every other process: its number -> name and seconds.
    """

    at: float
    cores: int
    busy: float
    stolen: float
    own: float
    programs: Mapping[int, tuple[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Load:
    """How busy others kept the cores, on average over some seconds.

    Attributes:
        others, stolen: cores that other programs used, and that the hypervisor gave to other machines.
        programs: the largest by name -> cores; those in other containers have no name here.
    """

    seconds: float
    cores: int
    others: float
    stolen: float
    programs: Mapping[str, float] = field(default_factory=dict)

    @property
    def lost(self) -> float:
        return self.others + self.stolen

    @property
    def quiet(self) -> bool:
        return self.lost <= QUIET

    def text(self) -> str:
        """Return "quiet", or "busy: others used 0.7 of 2 cores (cc1plus 0.5)"."""
        if self.quiet:
            return "quiet"
        named = ", ".join(f"{name} {cores:.1f}" for name, cores in self.programs.items())
        told = f"busy: others used {self.others:.1f} of {self.cores} cores{f' ({named})' if named else ''}"
        return told + (f", the hypervisor took {self.stolen:.1f}" if self.stolen > QUIET / 2 else "")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "seconds": round(self.seconds, 2),
            "cores": self.cores,
            "others": round(self.others, 3),
            "stolen": round(self.stolen, 3),
            "programs": {name: round(cores, 2) for name, cores in self.programs.items()},
            "quiet": self.quiet,
        }


def reading(proc: Path = _PROC) -> Reading | None:
    """Read the counters; None where the system has none."""
    try:
        usable = os.sched_getaffinity(0)
        tick = os.sysconf("SC_CLK_TCK")
        busy = stolen = 0
        for line in (proc / "stat").read_text(encoding="ascii").splitlines():
            name, *counts = line.split()
            if name.removeprefix("cpu").isdigit() and int(name[3:]) in usable:
                user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, counts[:8])
                busy += user + nice + system + irq + softirq  # guests are in user and nice
                stolen += steal
    except (AttributeError, OSError, ValueError):
        return None
    own, programs = _processes(proc, tick)
    return Reading(time.perf_counter(), len(usable), busy / tick, stolen / tick, own, programs)


def between(first: Reading | None, last: Reading | None) -> Load | None:
    """Return the load between two readings; None if it is unknown or they are too close to tell."""
    if first is None or last is None or last.at - first.at < _SHORTEST:
        return None
    seconds = last.at - first.at
    others = last.busy - first.busy - (last.own - first.own)
    used: Counter[str] = Counter()
    for number, (name, total) in last.programs.items():
        used[name] += (total - first.programs.get(number, (name, 0.0))[1]) / seconds  # type: ignore[assignment]
    largest = {name: cores for name, cores in used.most_common(_NAMED) if cores >= _WORTH_NAMING}
    return Load(
        seconds, last.cores, max(0.0, others / seconds), (last.stolen - first.stolen) / seconds, largest
    )


def idle_load(seconds: float = 0.5) -> Load | None:
    """Return the load while this process waits."""
    first = reading()
    if first is None:
        return None
    time.sleep(seconds)
    return between(first, reading())


def _processes(proc: Path, tick: int) -> tuple[float, dict[int, tuple[str, float]]]:
    """Return the processor seconds of this process with all that it started, and of every other process."""
    parents: dict[int, int] = {}
    own, ended, names = {}, {}, {}
    for folder in proc.iterdir():
        if folder.name.isdigit():
            with suppress(OSError, ValueError, IndexError):  # it may end meanwhile
                _, _, rest = (folder / "stat").read_text(errors="replace").partition(" (")
                name, _, values = rest.rpartition(") ")
                state = values.split()  # from field 3 on, proc_pid_stat(5)
                number = int(folder.name)
                parents[number], names[number] = int(state[1]), name
                own[number] = (int(state[11]) + int(state[12])) / tick
                ended[number] = (int(state[13]) + int(state[14])) / tick  # children that were waited for
    family = {os.getpid()}
    while True:
        larger = family | {number for number, parent in parents.items() if parent in family}
        if larger == family:
            break
        family = larger
    seconds = sum(own.get(number, 0.0) + ended.get(number, 0.0) for number in family)
    return seconds, {number: (names[number], own[number]) for number in own if number not in family}
