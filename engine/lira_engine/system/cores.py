"""Which of the processor's cores engines should use (Linux): one thread for each fast core.

Affinity, limits of control groups (containers), SMT siblings, and slow cores beside fast ones count. Only
figures that the kernel gives are used; nothing is started.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_SLOW = 0.5
"""Share of the fastest core's capacity below which a core is left out: a Cortex-A55 beside an A76 has 0.4. A
loop gives its pieces to whoever is free, so a core of 0.6 helps; one of 0.4 holds up the last piece."""
_SLOW_FREQUENCY = 0.9
"""The same for the highest frequency, where an ARM kernel knows no capacities: small cores differ little in
it."""


@dataclass(frozen=True)
class Cores:
    """What a process finds.

    Attributes:
        logical: CPUs that it may run on. physical: cores of these, SMT siblings counted once.
        fast: cores without those that are much slower than the fastest. limit: CPU time per time that its
            control groups allow, in cores; None without a limit.
    """

    logical: int
    physical: int
    fast: int
    limit: float | None = None

    @property
    def threads(self) -> int:
        """Return one for each fast core, at most the limit (1.5 takes two, 1.4 one)."""
        if self.limit is None:
            return self.fast
        return max(1, min(self.fast, int(self.limit + 0.5)))

    def text(self) -> str:
        """Return such as "4 of 8 (SMT siblings and 2 slow cores left out)"."""
        left = []
        if self.logical > self.physical:
            left.append("SMT siblings")
        if self.physical > self.fast:
            slow = self.physical - self.fast
            left.append(f"{slow} slow core{'' if slow == 1 else 's'}")
        why = [f"{' and '.join(left)} left out"] if left else []
        if self.threads < self.fast:
            why.append(f"limited to {self.limit:g} cores by a control group")
        told = f" ({'; '.join(why)})" if why else ""
        return f"{self.threads} of {self.logical}{told}"


def default_threads() -> int | None:
    """Return how many threads engines should take; None leaves it to them where there is no Linux (ONNX
    Runtime: one per core)."""
    return cores().threads if sys.platform == "linux" else None


def cores(root: Path = _ROOT, usable: Collection[int] | None = None, machine: str | None = None) -> Cores:
    """Return the cores by the files below `root`. `usable`: the CPUs that the process may run on; `machine`:
    as `platform.machine` says it."""
    usable = frozenset(os.sched_getaffinity(0) if usable is None else usable)
    system = root / "sys/devices/system/cpu"
    found = {_siblings(system, cpu) & usable or frozenset({cpu}) for cpu in usable}
    physical = sorted(min(group) for group in found)
    fast = _fast(root, system, physical, machine or platform.machine())
    return Cores(len(usable), len(physical), len(fast), _limit(root))


def _siblings(system: Path, cpu: int) -> frozenset[int]:
    """Return the CPUs of one core."""
    for name in ("core_cpus_list", "thread_siblings_list"):  # the second until Linux 5.3
        listed = _cpus(system / f"cpu{cpu}" / "topology" / name)
        if listed:
            return listed
    return frozenset({cpu})


def _fast(root: Path, system: Path, cpus: list[int], machine: str) -> list[int]:
    """Return those of `cpus` that are not much slower than the fastest."""
    performance = _cpus(root / "sys/devices/cpu_core/cpus")  # hybrid Intel; efficiency cores: cpu_atom
    if performance.intersection(cpus):
        return [cpu for cpu in cpus if cpu in performance]
    speeds, share = [_number(system / f"cpu{cpu}" / "cpu_capacity") for cpu in cpus], _SLOW
    if len(set(speeds)) == 1 and machine.startswith(("aarch64", "arm")):
        speeds = [_number(system / f"cpu{cpu}" / "cpufreq" / "cpuinfo_max_freq") for cpu in cpus]
        share = _SLOW_FREQUENCY
    known = [speed for speed in speeds if speed is not None]
    if len(known) < len(cpus):
        return cpus
    return [cpu for cpu, speed in zip(cpus, known, strict=True) if speed >= share * max(known)]


def _limit(root: Path) -> float | None:
    """Return the least limit of this process's control groups and those around them, in cores."""
    limits = list(_limits(root))
    return min(limits) if limits else None


def _limits(root: Path) -> Iterator[float]:
    with suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                top = root / "sys/fs/cgroup"
            elif "cpu" in controllers.split(","):
                top = root / "sys/fs/cgroup" / controllers
                top = top if top.is_dir() else root / "sys/fs/cgroup/cpu"
            else:
                continue
            group = top / path.strip("/")
            # In a container the path may be the host's: then only the top is there.
            for folder in (group, *group.parents):
                limit = _quota(folder)
                if limit is not None:
                    yield limit
                if folder == top:
                    break


def _quota(folder: Path) -> float | None:
    """Return the limit of one control group: cpu.max is "150000 100000" or "max 100000" (version 2)."""
    with suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    both = [_number(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    if both[0] is None or both[1] is None or both[0] <= 0 or both[1] <= 0:  # -1 is no limit
        return None
    return both[0] / both[1]


def _number(file: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(file.read_text(encoding="ascii"))
    return None


def _cpus(file: Path) -> frozenset[int]:
    """Return the CPUs of a list such as "0-3,8"; none if the file is missing."""
    with suppress(OSError, ValueError):
        found: set[int] = set()
        for part in file.read_text(encoding="ascii").strip().split(","):
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
        return frozenset(found)
    return frozenset()
