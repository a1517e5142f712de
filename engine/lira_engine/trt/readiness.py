"""Whether this machine can build and run engines of TensorRT and TensorRT for RTX."""

from __future__ import annotations

import platform

from lira_engine.cuda.opening import missing_package
from lira_engine.engines.target import Readiness
from lira_engine.errors import LiraError
from lira_engine.system.extras import installed
from lira_engine.system.machine import gpu_here, gpus, jetson
from lira_engine.trt.flavour import RTX_BUILDS_FOR, RTX_CAPABILITIES, Flavour, load_flavour, parse_version

RTX_FROM = (7, 5)
"""The oldest compute capability that TensorRT for RTX runs on: Turing."""
JETPACKS: tuple[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]], ...] = (
    ((6, 2), (6, 3), (10, 3)),
    ((7, 2), (7, 2, 1), (10, 16)),
    ((7, 2, 2), (8,), (11, 4, 1)),
)
"""JetPack from (inclusive), to (exclusive), and the TensorRT that comes with it."""
DRIVERS = (("cu13", 580, 580), ("cu12", 535, 537))
"""CUDA of TensorRT's libraries, as their package's name ends, and the oldest driver on Linux and on Windows.
From docs.nvidia.com, TensorRT 11.4.0, "Prerequisites"; that page of TensorRT for RTX 1.4 gives no number."""


def tensorrt_readiness() -> Readiness:
    target = "tensorrt"
    if not gpu_here():
        note = "no NVIDIA GPU found: its engines are built on the GPU that runs them"
        return Readiness(target, "no", note)
    try:
        flavour = load_flavour(target)
    except LiraError as error:
        return Readiness(target, "no", str(error))
    found = _native(flavour)
    board = jetson()
    if board is None or board.jetpack is None:
        return found
    expected = tensorrt_of(board.jetpack)
    if expected is not None and flavour.version[:2] != expected[:2]:
        note = f"{found.note}; JetPack {board.jetpack} comes with TensorRT {_dotted(expected)}"
        return Readiness(target, found.state, note)
    return found


def rtx_readiness() -> Readiness:
    target = "tensorrt-rtx"
    if platform.machine() not in ("x86_64", "AMD64"):
        note = f"is for x86-64 Linux and Windows, this is {platform.machine()}: take tensorrt"
        return Readiness(target, "no", note)
    try:
        flavour = load_flavour(target)
    except LiraError as error:
        return Readiness(target, "no", str(error))
    cards = [(gpu.name, gpu.compute_capability) for gpu in gpus() if gpu.compute_capability]
    for name, capability in cards:
        if parse_version(capability) < RTX_FROM:
            note = f"{name} has compute capability {capability}, expected {_dotted(RTX_FROM)} or newer"
            return Readiness(target, "no", note)
    found = _native(flavour)
    for name, capability in cards:
        if capability not in RTX_BUILDS_FOR:
            note = f"it does not build for {name} ({capability}): take --target cuda"
            return Readiness(target, "no", note)
        if capability not in RTX_CAPABILITIES:
            note = f"{found.note}; for {name}: `build ... --compute-capability {capability}`"
            found = Readiness(target, found.state, note)
    return found


def _native(flavour: Flavour) -> Readiness:
    """Return what an installed package can do on this machine."""
    target, name = flavour.target, f"{flavour.target} {_dotted(flavour.version)}"
    if not gpu_here():
        return Readiness(target, "build only", f"{name}, no NVIDIA GPU found")
    old = _old_driver(target)
    if old is not None:
        state = "build only" if flavour.package.compiles_at_run else "no"
        return Readiness(target, state, f"{name}; {old}")
    lacking = missing_package()
    if lacking is not None:
        return Readiness(target, "build only", f"{name}; {lacking}")
    return Readiness(target, "yes", name)


def _old_driver(target: str) -> str | None:
    """Return that the driver is too old for the installed package, or None. A board's comes with L4T."""
    if jetson() is not None:
        return None
    for cuda, linux, windows in DRIVERS:
        least = windows if platform.system() == "Windows" else linux
        for gpu in gpus() if installed(f"{target}-{cuda}") else []:
            found = parse_version(gpu.driver)
            if found and found[0] < least:
                return f"running needs driver {least} or newer, found {gpu.driver}: update the driver"
    return None


def tensorrt_of(jetpack: str) -> tuple[int, ...] | None:
    """Return the TensorRT of a JetPack version such as "6.2+b77"; None for an unknown one."""
    version = parse_version(jetpack.partition("+")[0].partition("-")[0])
    for since, below, tensorrt in JETPACKS:
        if since <= version < below:
            return tensorrt
    return None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
