"""What this machine is, what it can run, and what is missing."""

from __future__ import annotations

import shutil
import sys
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
from lira_engine.machine import gpus, this_machine


def examine() -> Tables:
    """Tables about the machine, the installed packages, and the targets that can run here."""
    tables: Tables = [("machine", _machine()), ("packages", _packages()), ("targets", _targets())]
    problems = _problems()
    if problems:
        tables.append(("problems", problems))
    return tables


def _machine() -> list[tuple[str, ...]]:
    here = this_machine()
    memory = "unknown" if here.memory_gib is None else f"{here.memory_gib:.1f} GiB"
    if here.available_gib is not None:
        memory += f", {here.available_gib:.1f} GiB available"
    rows: list[tuple[str, ...]] = [
        ("system", here.system),
        ("processor", f"{here.cpu}, {here.cores} cores"),
        ("memory", memory),
        ("disk", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB free in {Path.cwd()}"),
        ("python", f"{here.python} ({sys.executable})"),
    ]
    rows += [("gpu", f"{gpu.name}, {gpu.memory}, {gpu.driver} (driver)") for gpu in here.gpus]
    if not here.gpus:
        rows.append(("gpu", "none found (no answer from nvidia-smi)"))
    if here.power_mode is not None:
        rows.append(("power mode", here.power_mode))
    return rows + [("jetson", line) for line in here.jetson]


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
    wanted = "cuda" if gpus() else "cpu"
    return [
        (
            f"{' and '.join(both)} are both installed and overwrite each other's files: "
            f"pip uninstall -y {' '.join(both)}, then {install_line(wanted)}",
        )
    ]
