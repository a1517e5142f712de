"""What this machine is, what it can run, and what is missing."""

from __future__ import annotations

import platform
import shutil
import sys
from pathlib import Path

from lira_engine.bundle.bundle import Bundle
from lira_engine.errors import LiraError, memory_errors_told
from lira_engine.inspect import Tables, engine_rows
from lira_engine.ort.device import PROVIDERS
from lira_engine.system.extras import (
    ENGINES_FROM,
    ONNXRUNTIMES,
    PORTABLE_FROM,
    extras,
    install_line,
    installed,
    missing_packages,
)
from lira_engine.system.machine import gpus, jetson, this_machine
from lira_engine.trt.flavour import RTX_BUILDS_FOR, RTX_CAPABILITIES, load_flavour, parse_version

RTX_FROM = (7, 5)
"""Compute capability from which on TensorRT for RTX runs: Turing."""
JETPACKS: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...] = (
    ((6, 2), (6, 3), (10, 3)),
    ((7, 2), (7, 2, 1), (10, 16)),
    ((7, 2, 2), (8,), (11, 4, 1)),
)
"""JetPack from, below: the TensorRT that comes with it."""
DRIVERS = (("cu13", 580, 580), ("cu12", 535, 537))
"""CUDA of TensorRT's libraries, as their package ends: the oldest driver on Linux, and on Windows. From
docs.nvidia.com, TensorRT 11.4.0, "Prerequisites"; that page of TensorRT for RTX 1.4 names no number."""


def examine(bundle: Path | None = None) -> Tables:
    """Tables about the machine, the installed packages, and the targets that can run here; of a bundle also
    which of its engines can. Raises LiraError where `bundle` is none."""
    tables: Tables = [("machine", _machine()), ("packages", _packages()), ("targets", _targets())]
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
    version, providers = _onnxruntime()
    rows.append(("onnxruntime", version or "missing", ", ".join(providers)))
    for extra, packages in extras().items():
        lacking = missing_packages(extra)
        if lacking:
            line = install_line(extra)
            if extra == "cuda" and installed("onnxruntime"):  # their files have the same names
                line = f"pip uninstall -y onnxruntime, then {line}"
            rows.append((f"[{extra}]", f"lacks {', '.join(lacking)}", line))
        else:
            rows.append((f"[{extra}]", "installed", ", ".join(f"{p} {installed(p)}" for p in packages)))
    return rows


def _onnxruntime() -> tuple[str | None, list[str]]:
    """Version and execution providers of ONNX Runtime, whatever wheel brought it (JetPack has its own)."""
    try:
        with memory_errors_told():
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
    return [*rows, _cuda(), _tensorrt(), _tensorrt_rtx()]


def _cuda() -> tuple[str, ...]:
    if not _gpu_here():
        return ("cuda", "no", "no NVIDIA GPU found")
    version, providers = _onnxruntime()
    if version is None:
        return ("cuda", "no", f"needs ONNX Runtime for CUDA: {install_line('cuda')}")
    if "CUDA" not in providers:
        mend = f"pip uninstall -y onnxruntime, then {install_line('cuda')}"
        return ("cuda", "no", f"onnxruntime {version} has no CUDA provider: {mend}")
    chosen = [
        name for name, provider in PROVIDERS.items() if provider[: -len("ExecutionProvider")] in providers
    ]
    return ("cuda", "yes", f"--provider {', '.join(chosen)}")


def _tensorrt() -> tuple[str, ...]:
    if not _gpu_here():
        return ("tensorrt", "no", "no NVIDIA GPU found: its engines are built on the GPU that runs them")
    try:
        flavour = load_flavour("tensorrt")
    except LiraError as error:
        return ("tensorrt", "no", str(error))
    row = _native("tensorrt", flavour.version, "tensorrt")
    board = jetson()
    if board is None or board.jetpack is None:
        return row
    expected = tensorrt_of(board.jetpack)
    if expected is not None and flavour.version[:2] != expected[:2]:
        return (*row[:2], f"{row[2]}; JetPack {board.jetpack} comes with TensorRT {_dotted(expected)}")
    return row


def _tensorrt_rtx() -> tuple[str, ...]:
    target = "tensorrt-rtx"
    if platform.machine() not in ("x86_64", "AMD64"):
        return (target, "no", f"is for x86-64 Linux and Windows, this is {platform.machine()}: take tensorrt")
    try:
        flavour = load_flavour(target)
    except LiraError as error:
        return (target, "no", str(error))
    cards = [(gpu.name, gpu.compute_capability) for gpu in gpus() if gpu.compute_capability]
    for name, capability in cards:
        if parse_version(capability) < RTX_FROM:
            note = f"{name} has compute capability {capability}, expected {_dotted(RTX_FROM)} or newer"
            return (target, "no", note)
    answer = _native(target, flavour.version, "rtx")
    for name, capability in cards:
        if capability not in RTX_BUILDS_FOR:
            return (target, "no", f"it does not build for {name} ({capability}): take --target cuda")
        if capability not in RTX_CAPABILITIES:
            answer = (*answer[:2], f"{answer[2]}; for {name}: `build ... --compute-capability {capability}`")
    return answer


def _native(target: str, version: tuple[int, ...], extra: str) -> tuple[str, ...]:
    """What an installed TensorRT can do here."""
    name = f"{target} {_dotted(version)}"
    if not _gpu_here():
        return (target, "build only", f"{name}, no NVIDIA GPU found")
    old = _old_driver(target)
    if old is not None:
        return (target, "build only" if target == "tensorrt-rtx" else "no", f"{name}; {old}")
    if installed("pycuda") is None:
        return (target, "build only", f"{name}; running needs pycuda: {install_line(extra)}")
    return (target, "yes", name)


def _old_driver(target: str) -> str | None:
    """That the driver is older than the installed TensorRT needs. A board's driver comes with its L4T."""
    if jetson() is not None:
        return None
    for cuda, linux, windows in DRIVERS:
        least = windows if platform.system() == "Windows" else linux
        for gpu in gpus() if installed(f"{target}-{cuda}") else []:
            found = parse_version(gpu.driver)
            if found and found[0] < least:
                return f"running needs driver {least} or newer, found {gpu.driver}: update the driver"
    return None


def _gpu_here() -> bool:
    """Some Jetson boards have no nvidia-smi."""
    return bool(gpus()) or jetson() is not None


def tensorrt_of(jetpack: str) -> tuple[int, ...] | None:
    """TensorRT of a JetPack version such as "6.2+b77"; None for one that is not known here."""
    version = parse_version(jetpack.partition("+")[0].partition("-")[0])
    for since, below, tensorrt in JETPACKS:
        if since <= version < below:
            return tensorrt
    return None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _problems() -> list[tuple[str, ...]]:
    both = [package for package in ONNXRUNTIMES if installed(package)]
    if len(both) < 2:
        return []
    wanted = "cuda" if _gpu_here() else "cpu"
    return [
        (
            f"{' and '.join(both)} are both installed and overwrite each other's files: "
            f"pip uninstall -y {' '.join(both)}, then {install_line(wanted)}",
        )
    ]
