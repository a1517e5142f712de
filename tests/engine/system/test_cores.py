"""The default number of threads: one for each fast core, as trees of /sys and /proc of many machines say."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pytest

from lira_engine.system.cores import Cores, cores, default_threads


def tree(
    root: Path,
    siblings: Sequence[Collection[int]],
    capacity: Sequence[int] = (),
    frequency: Sequence[int] = (),
    files: Mapping[str, str] = {},
    siblings_name: str = "core_cpus_list",
) -> None:
    """Write a machine: the CPUs of each core, and per CPU its capacity and highest frequency in MHz."""
    for core in siblings:
        for cpu in core:
            write(root, f"sys/devices/system/cpu/cpu{cpu}/topology/{siblings_name}", listed(core))
    for cpu, value in enumerate(capacity):
        write(root, f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity", str(value))
    for cpu, value in enumerate(frequency):
        write(root, f"sys/devices/system/cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq", f"{1000 * value}")
    for name, content in files.items():
        write(root, name, content)


def listed(cpus: Collection[int]) -> str:
    """Return "0-1" or "0,8", as the kernel does."""
    first, last = min(cpus), max(cpus)
    if len(cpus) == last - first + 1 and last > first:
        return f"{first}-{last}"
    return ",".join(map(str, sorted(cpus)))


def write(root: Path, name: str, content: str) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{content}\n")


def alone(count: int) -> list[list[int]]:
    return [[cpu] for cpu in range(count)]


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16, 64])
def test_equal_cores_get_a_thread_each(tmp_path: Path, count: int) -> None:
    tree(tmp_path, alone(count), capacity=[1024] * count)
    found = cores(tmp_path, range(count), "x86_64")
    assert found == Cores(count, count, count)
    assert found.threads == count and found.text() == f"{count} of {count}"


@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
@pytest.mark.parametrize("apart", [True, False])  # 0 and 8, or 0 and 1, as kernels and hypervisors number
def test_smt_siblings_count_once(tmp_path: Path, name: str, apart: bool) -> None:
    pairs = [[i, i + 8] if apart else [2 * i, 2 * i + 1] for i in range(8)]
    tree(tmp_path, pairs, siblings_name=name)
    found = cores(tmp_path, range(16), "x86_64")
    assert found == Cores(16, 8, 8)
    assert found.text() == "8 of 16 (SMT siblings left out)"


def test_hybrid_intel_takes_performance_cores_only(tmp_path: Path) -> None:
    """An i7-1260P: 4 cores with SMT, 8 efficiency cores. Both kinds are 1024 until Linux 6.12."""
    siblings = [[0, 1], [2, 3], [4, 5], [6, 7], *([cpu] for cpu in range(8, 16))]
    files = {"sys/devices/cpu_core/cpus": "0-7", "sys/devices/cpu_atom/cpus": "8-15"}
    tree(tmp_path, siblings, [1024] * 16, [4700] * 8 + [3400] * 8, files)
    found = cores(tmp_path, range(16), "x86_64")
    assert found == Cores(16, 12, 4)
    assert found.text() == "4 of 16 (SMT siblings and 8 slow cores left out)"
    # Bound to efficiency cores, they are what there is.
    assert cores(tmp_path, range(8, 16), "x86_64") == Cores(8, 8, 8)
    assert cores(tmp_path, [0, 1, 2, 8], "x86_64").threads == 2


BOARDS = {
    "Raspberry Pi 5": ([1024] * 4, [2400] * 4, 4),
    "Jetson AGX Orin": ([1024] * 12, [2201] * 12, 12),
    "RK3588": ([414] * 4 + [1024] * 4, [1800] * 4 + [2400] * 4, 4),
    "RK3399": ([485] * 4 + [1024] * 2, [1416] * 4 + [1800] * 2, 2),
    "three clusters": ([160] * 4 + [620] * 2 + [1024] * 2, [1800] * 4 + [2250] * 2 + [2800] * 2, 4),
    "RK3588, kernel without capacities": ([1024] * 8, [1800] * 4 + [2400] * 4, 4),
    "no figures": ([], [], 6),
}


@pytest.mark.parametrize("board", BOARDS)
def test_small_arm_cores_are_left_out(tmp_path: Path, board: str) -> None:
    capacity, frequency, expected = BOARDS[board]
    count = len(capacity) or expected
    tree(tmp_path, alone(count), capacity, frequency)
    found = cores(tmp_path, range(count), "aarch64")
    assert (found.physical, found.threads) == (count, expected)
    if expected < count:
        assert found.text() == f"{expected} of {count} ({count - expected} slow cores left out)"


def test_frequencies_of_equal_x86_cores_say_nothing(tmp_path: Path) -> None:
    """Zen 5 and Zen 5c do the same work per cycle: a core at 3.3 GHz helps one at 5.1."""
    tree(tmp_path, alone(12), [1024] * 12, [5100] * 4 + [3300] * 8)
    assert cores(tmp_path, range(12), "x86_64").threads == 12


def test_affinity_is_respected(tmp_path: Path) -> None:
    tree(tmp_path, [[i, i + 8] for i in range(8)])
    assert cores(tmp_path, [0, 1, 8], "x86_64") == Cores(3, 2, 2)  # 0 and 8 are one core
    assert cores(tmp_path, [9], "x86_64") == Cores(1, 1, 1)


GROUP = "proc/self/cgroup"
LIMITS: dict[str, tuple[dict[str, str], float | None, int]] = {
    "version 2": ({GROUP: "0::/app", "sys/fs/cgroup/app/cpu.max": "200000 100000"}, 2.0, 2),
    "one and a half": ({GROUP: "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5, 2),
    "a little": ({GROUP: "0::/", "sys/fs/cgroup/cpu.max": "20000 100000"}, 0.2, 1),
    "none": ({GROUP: "0::/app", "sys/fs/cgroup/app/cpu.max": "max 100000"}, None, 8),
    "of the parent": (
        {
            GROUP: "0::/pod/app",
            "sys/fs/cgroup/pod/app/cpu.max": "max 100000",
            "sys/fs/cgroup/pod/cpu.max": "300000 100000",
        },
        3.0,
        3,
    ),
    "in a container, whose path is the host's": (
        {GROUP: "0::/docker/1f", "sys/fs/cgroup/cpu.max": "400000 100000"},
        4.0,
        4,
    ),
    "version 1": (
        {
            GROUP: "5:memory:/x\n4:cpu,cpuacct:/x\n0::/",
            "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": "250000",
            "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": "100000",
        },
        2.5,
        3,
    ),
    "version 1 without a limit": (
        {
            GROUP: "1:cpu:/",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        None,
        8,
    ),
    "more than there is": ({GROUP: "0::/", "sys/fs/cgroup/cpu.max": "9900000 100000"}, 99.0, 8),
    "nonsense": ({GROUP: "what\n0::/", "sys/fs/cgroup/cpu.max": "many"}, None, 8),
}


@pytest.mark.parametrize("case", LIMITS)
def test_limits_of_control_groups_are_respected(tmp_path: Path, case: str) -> None:
    files, limit, threads = LIMITS[case]
    tree(tmp_path, alone(8), files=files)
    found = cores(tmp_path, range(8), "x86_64")
    assert (found.limit, found.threads) == (limit, threads)
    assert ("limited to" in found.text()) == (threads < 8)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /sys")
def test_this_machine_gets_a_number() -> None:
    assert 1 <= (default_threads() or 0) <= len(os.sched_getaffinity(0))


def test_other_systems_are_left_to_the_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert default_threads() is None
