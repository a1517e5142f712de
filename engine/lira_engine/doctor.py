"""Describe this machine: its hardware, its packages, the targets that it can run, and what is missing."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from lira_engine.bundle.bundle import Bundle
from lira_engine.inspect import Tables, engine_rows
from lira_engine.system.cores import cores
from lira_engine.system.cuda_libraries import dotted, library_mend, use_cuda_libraries
from lira_engine.system.extras import (
    extras,
    install_line,
    installed,
    missing_packages,
    onnxruntime_here,
    onnxruntimes,
    versions,
)
from lira_engine.system.machine import gpu_here, this_machine
from lira_engine.targets import PORTABLE, TARGETS


def examine(bundle: Path | None = None) -> Tables:
    """Return tables about the machine, the installed packages, the targets that can run here, and the engines
    of `bundle` that can. Raises LiraError if it is not a bundle."""
    tables: Tables = [("machine", _machine()), ("packages", _packages())]
    cuda = _cuda()
    if cuda:
        tables.append(("CUDA for onnxruntime", cuda))
    tables.append(("targets", _targets()))
    if bundle is not None:
        tables.append((f"engines of {bundle}", engine_rows(Bundle.open(bundle))))
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
        ("instructions", " ".join(here.instruction_sets) or "unknown"),
        ("threads", f"{cores().text()} by default" if sys.platform == "linux" else "left to ONNX Runtime"),
        ("memory", memory),
        ("disk", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.1f} GiB free in {Path.cwd()}"),
        ("python", f"{here.python} ({sys.executable})"),
    ]
    for gpu in here.gpus:
        known = f", compute capability {gpu.compute_capability}" if gpu.compute_capability else ""
        rows.append(("gpu", f"{gpu.name}, {gpu.memory}, {gpu.driver} (driver){known}"))
    if not here.gpus:
        found = "the board's own" if here.jetson else "none found"
        rows.append(("gpu", f"{found} (no answer from nvidia-smi)"))
    if here.power_mode is not None:
        rows.append(("power mode", here.power_mode))
    return rows + [("jetson", line) for line in here.jetson]


def _packages() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("lira-edge", installed("lira-edge") or "", "")]
    version, providers = onnxruntime_here()
    rows.append(("onnxruntime", version or "missing", ", ".join(providers)))
    for extra, packages in extras().items():
        lacking = missing_packages(extra)
        if lacking:
            line = install_line(extra)
            others = [one for one in onnxruntimes() if one not in packages]
            if extra == "cuda" and others:  # both wheels have the same files
                line = f"pip uninstall -y {' '.join(others)}, then {line}"
            rows.append((f"[{extra}]", f"lacks {', '.join(lacking)}", line))
        else:
            found = versions(*packages) or versions(*onnxruntimes())
            rows.append((f"[{extra}]", "installed", ", ".join(" ".join(pair) for pair in found.items())))
    return rows


def _cuda() -> list[tuple[str, ...]]:
    """Return what ONNX Runtime needs on a GPU, and where it is; nothing for one without CUDA."""
    _, providers = onnxruntime_here()
    if "CUDA" not in providers:
        return []
    here = use_cuda_libraries()
    wanted = "it does not say for which CUDA" if here.wanted is None else f"for CUDA {here.wanted}"
    driver = "" if here.driver is None else "up to an unknown CUDA"
    fits = "missing: install NVIDIA's driver" if here.driver is None else ""
    if here.driver:
        driver = f"up to CUDA {dotted(here.driver)}"
        fits = here.old_driver() if here.driver[0] < (here.wanted or 0) else ""
    rows: list[tuple[str, ...]] = [("onnxruntime", here.onnxruntime, wanted), ("driver", driver, fits)]
    for one in here.libraries:
        of = "" if one.cuda in (None, here.wanted) else f", for CUDA {one.cuda}"
        rows.append((one.name, (one.version or one.file) + of, one.path or f"missing: {library_mend()}"))
    return rows


def _targets() -> list[tuple[str, ...]]:
    """Return a row per target, the portable graphs after the CPU."""
    cpu, *others = TARGETS.values()
    found = [one.readiness() for one in (cpu, PORTABLE, *others)]
    return [(one.target, one.state, one.note) for one in found]


def _problems() -> list[tuple[str, ...]]:
    both = onnxruntimes()
    if len(both) < 2:
        return []
    wanted = "cuda" if gpu_here() else "cpu"
    return [
        (
            f"{' and '.join(both)} are both installed and overwrite each other's files: "
            f"pip uninstall -y {' '.join(both)}, then {install_line(wanted)}",
        )
    ]
