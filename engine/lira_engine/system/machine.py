"""Facts about the machine: processor, memory, GPUs, and what a board says about itself."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lira_engine.system.windows_memory import windows_memory

_L4T = Path("/etc/nv_tegra_release")
_MODEL = Path("/proc/device-tree/model")
_COMPATIBLE = Path("/proc/device-tree/compatible")
_CPUINFO = Path("/proc/cpuinfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")

_INSTRUCTION_SETS = (
    "avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip


@dataclass(frozen=True)
class Gpu:
    """As nvidia-smi reports: name, memory ("24564 MiB"), driver version, compute capability ("8.9"; None if
    unknown)."""

    name: str
    memory: str
    driver: str
    compute_capability: str | None = None


@dataclass(frozen=True)
class Jetson:
    """A Jetson board.

    Attributes:
        model: with the numbers of carrier and module: one developer kit has modules with different GPUs.
        l4t: release of its Linux, such as "36.4.3". jetpack: version of that package, if installed.
    """

    model: str
    l4t: str
    jetpack: str | None


@dataclass(frozen=True)
class Machine:
    """What the system reports; None and () for what it does not.

    Attributes:
        cores: that this process may run on. memory_gib, available_gib: of the whole machine.
        jetson: model, L4T and JetPack of a Jetson board.
        power_mode: of a Jetson board (nvpmodel), or the governor of the first core.
        instruction_sets: of the processor, those that matrix products use, as Linux names them.
    """

    system: str
    cpu: str
    cores: int
    memory_gib: float | None
    available_gib: float | None
    gpus: tuple[Gpu, ...]
    jetson: tuple[str, ...]
    power_mode: str | None
    python: str
    instruction_sets: tuple[str, ...] = ()


def this_machine() -> Machine:
    """Ask the system, and nvidia-smi, nvpmodel and dpkg-query if present; takes up to a second."""
    total, available = _memory()
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_name(),
        cores=usable_cores(),
        memory_gib=total,
        available_gib=available,
        gpus=tuple(gpus()),
        jetson=tuple(_lines(jetson())),
        power_mode=_power_mode(),
        python=platform.python_version(),
        instruction_sets=instruction_sets(),
    )


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def gpus() -> list[Gpu]:
    """Return the NVIDIA GPUs; none if nvidia-smi is missing or fails."""
    fields = [
        [part.strip() for part in line.split(",")] for line in query_gpus("name,memory.total,driver_version")
    ]
    # A query of its own: an older nvidia-smi rejects every query with this field.
    capabilities = [line if re.fullmatch(r"\d+\.\d+", line) else None for line in query_gpus("compute_cap")]
    capabilities += [None] * (len(fields) - len(capabilities))
    return [
        Gpu(parts[0], parts[1], parts[2], known)
        for parts, known in zip(fields, capabilities, strict=False)
        if len(parts) == 3
    ]


def gpu_here() -> bool:
    """Return whether there is an NVIDIA GPU. Some Jetson boards have no nvidia-smi."""
    return bool(gpus()) or jetson() is not None


def jetson() -> Jetson | None:
    """Return the board, or None if this is no Jetson."""
    if not _L4T.exists():
        return None
    model, l4t = "Jetson", "unknown"
    with suppress(OSError):
        model = _MODEL.read_text(encoding="utf-8").strip("\0\n ")
    with suppress(OSError):  # zero-terminated names, the board's first, its processor's last
        board = _COMPATIBLE.read_text(encoding="utf-8").partition("\0")[0].removeprefix("nvidia,").strip()
        model += f" ({board})" if board else ""
    with suppress(OSError, IndexError):
        line = _L4T.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
        release = re.match(r"R(\d+) \(release\), REVISION: ([\d.]+)", line)
        l4t = f"{release[1]}.{release[2]}" if release else line
    jetpack = _answer(["dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack"])
    return Jetson(model, l4t, jetpack[0] if jetpack else None)


def available_mib() -> int | None:
    """Return the memory that can be taken without killing a process, free swap included, MiB; None if
    unknown."""
    with suppress(OSError, ValueError, KeyError, IndexError):
        kib = _meminfo()
        return (kib["MemAvailable"] + kib.get("SwapFree", 0)) >> 10
    windows = windows_memory()
    return windows.committable >> 20 if windows else None


def peak_rss_mib() -> int | None:
    """Return the peak resident memory of this process so far, MiB; None if unknown.

    On Linux it is the peak of this address space: ``ru_maxrss`` counts what the parent held at the start.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) >> 10
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak >> 20 if sys.platform == "darwin" else peak >> 10


def cpu_name() -> str:
    """Return the processor's name."""
    return _cpuinfo("model name", "Model") or platform.processor() or platform.machine()


def instruction_sets() -> tuple[str, ...]:
    """Return which instructions for matrix products the processor has; none where Linux does not say."""
    has = _cpuinfo("flags", "Features").split()
    return tuple(name for name in _INSTRUCTION_SETS if name in has)


def _cpuinfo(*keys: str) -> str:
    """Return the first value of one of these keys, "" without one."""
    with suppress(OSError):
        for line in _CPUINFO.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in keys:
                return value.strip()
    return ""


def _memory() -> tuple[float | None, float | None]:
    """Return total and available memory, GiB."""
    with suppress(OSError, ValueError, KeyError, IndexError):
        kib = _meminfo()
        return kib["MemTotal"] / 2**20, kib["MemAvailable"] / 2**20
    windows = windows_memory()
    if windows:
        return windows.total / 2**30, windows.available / 2**30
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, None
    return None, None


def _meminfo() -> dict[str, int]:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return {line.partition(":")[0]: int(line.split()[1]) for line in lines}


def _lines(board: Jetson | None) -> list[str]:
    if board is None:
        return []
    return [board.model, f"L4T {board.l4t}", *([f"JetPack {board.jetpack}"] if board.jetpack else [])]


def _power_mode() -> str | None:
    for line in _answer(["nvpmodel", "-q"]):
        key, _, value = line.partition(":")
        if key == "NV Power Mode":
            return value.strip()
    with suppress(OSError):
        return f"governor {_GOVERNOR.read_text(encoding='utf-8').strip()}"
    return None


def query_gpus(what: str, *options: str) -> list[str]:
    """Return a line for each GPU, with the values that nvidia-smi has for these names, commas between them;
    none if it is missing or fails. `options`: more of its arguments."""
    return _answer(["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader", *options])


def _answer(command: list[str]) -> list[str]:
    """Return the lines that a program prints; none if it is missing, fails or hangs."""
    if shutil.which(command[0]) is None:
        return []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
