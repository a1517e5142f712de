"""What this machine is, what it can run, and what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from lira_engine.extras import (
    ENGINES_FROM,
    ONNXRUNTIMES,
    PORTABLE_FROM,
    extras,
    install_line,
    installed,
    missing_packages,
)
from lira_engine.inspect import Tables

_L4T = Path("/etc/nv_tegra_release")


def examine() -> Tables:
    """Tables about the machine, the installed packages, and the targets that can run here."""
    tables: Tables = [("machine", _machine()), ("packages", _packages()), ("targets", _targets())]
    problems = _problems()
    if problems:
        tables.append(("problems", problems))
    return tables


def _machine() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("system", f"{platform.system()} {platform.release()} {platform.machine()}"),
        ("processor", f"{_cpu_name()}, {_cores()} cores"),
        ("memory", _memory()),
        ("disk", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB free in {Path.cwd()}"),
        ("python", f"{platform.python_version()} ({sys.executable})"),
    ]
    rows += [("gpu", gpu) for gpu in _gpus()] or [("gpu", "none found (no answer from nvidia-smi)")]
    rows += [("jetson", line) for line in _jetson()]
    return rows


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    return platform.processor() or platform.machine()


def _memory() -> str:
    with suppress(OSError, ValueError, KeyError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        kib = {line.partition(":")[0]: int(line.split()[1]) for line in lines}
        return f"{kib['MemTotal'] / 2**20:.1f} GiB, {kib['MemAvailable'] / 2**20:.1f} GiB available"
    with suppress(OSError, ValueError, AttributeError):
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    return "unknown"


def _gpus() -> list[str]:
    """Name, memory and driver of each NVIDIA GPU, as nvidia-smi says."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return [f"{line} (driver)" for line in _answer(query)]


def _jetson() -> list[str]:
    """Model, L4T release and JetPack of a Jetson board; nothing elsewhere."""
    if not _L4T.exists():
        return []
    lines = []
    with suppress(OSError):
        lines.append(Path("/proc/device-tree/model").read_text(encoding="utf-8").strip("\0\n "))
    with suppress(OSError):
        lines.append("L4T " + _L4T.read_text(encoding="utf-8").splitlines()[0].lstrip("# "))
    if shutil.which("dpkg-query"):
        lines += [
            f"JetPack {line}" for line in _answer(["dpkg-query", "-W", "-f=${Version}", "nvidia-jetpack"])
        ]
    return lines


def _answer(command: list[str]) -> list[str]:
    """The lines that a program prints, none where it fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def _packages() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("lira-edge", installed("lira-edge") or "", "")]
    version, providers = _onnxruntime()
    rows.append(("onnxruntime", version or "missing", ", ".join(providers)))
    for extra, packages in extras().items():
        lacking = missing_packages(extra)
        if lacking:
            rows.append((f"[{extra}]", f"lacks {', '.join(lacking)}", install_line(extra)))
        else:
            rows.append((f"[{extra}]", "installed", ", ".join(f"{p} {installed(p)}" for p in packages)))
    return rows


def _onnxruntime() -> tuple[str | None, list[str]]:
    """Version and execution providers of ONNX Runtime, whatever wheel brought it (JetPack has its own)."""
    try:
        import onnxruntime
    except ImportError:
        return None, []
    providers = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    return onnxruntime.__version__, providers


def _targets() -> list[tuple[str, ...]]:
    version, _ = _onnxruntime()
    number = tuple(int(part) for part in (version or "0.0").split(".")[:2])
    rows: list[tuple[str, ...]] = []
    for target, least, note in (
        ("cpu", ENGINES_FROM, "engines by `lira-edge build`"),
        ("portable", PORTABLE_FROM, "graphs as exported"),
    ):
        if version is None:
            rows.append((target, "no", f"needs ONNX Runtime: {install_line('cpu')}"))
        elif number < least:
            rows.append((target, "no", f"needs onnxruntime {_dotted(least)} or newer, found {version}"))
        else:
            rows.append((target, "yes", note))
    unbuilt = ("cuda", "tensorrt", "tensorrt-rtx")
    rows += [(target, "no", "this version builds no engines for it") for target in unbuilt]
    return rows


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _problems() -> list[tuple[str, ...]]:
    both = [package for package in ONNXRUNTIMES if installed(package)]
    if len(both) < 2:
        return []
    wanted = "cuda" if _gpus() else "cpu"
    return [
        (
            f"{' and '.join(both)} are both installed and overwrite each other's files: "
            f"pip uninstall -y {' '.join(both)}, then {install_line(wanted)}",
        )
    ]
