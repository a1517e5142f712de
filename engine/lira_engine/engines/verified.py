"""That engines gave right answers on a device, and whether it is the one that is here."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from lira_engine.engines.record import BUILD_NAME, Build, Setting, Verified
from lira_engine.errors import LiraError, quoted
from lira_engine.system.atomic import atomic_write
from lira_engine.system.machine import cpu_name, gpus, jetson

GPU_TARGETS = ("cuda", "tensorrt", "tensorrt-rtx")
_RUNTIMES = {
    "cpu": ("onnxruntime", "onnxruntime-gpu"),
    "cuda": ("onnxruntime-gpu", "onnxruntime"),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
}


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def this_setting(target: str) -> Setting:
    """Of this machine, for a target. Raises LiraError where a GPU target finds no GPU."""
    runtime = _runtime(target)
    if target not in GPU_TARGETS:
        return Setting(cpu_name(), "", runtime)
    board = jetson()
    if board is not None:
        return Setting(board.model, board.l4t, runtime)
    found = gpus()
    if not found:
        raise LiraError(
            f"target {target} needs an NVIDIA GPU, nvidia-smi names none: see `lira-edge doctor`; "
            "a graph of the same bundle runs on this machine with --target cpu"
        )
    # CUDA numbers GPUs in an order of its own: which of several it will be, their names alone do not tell.
    names, visible = ", ".join(gpu.name for gpu in found), os.environ.get("CUDA_VISIBLE_DEVICES")
    device = names if visible is None else f"{names} (CUDA_VISIBLE_DEVICES {visible})"
    return Setting(device, found[0].driver, runtime)


def keep_verified(folder: Path, build: Build, found: Verified | None) -> None:
    """Write into build.json what was found, None for what failed."""
    with atomic_write(folder / BUILD_NAME) as file:
        file.write(replace(build, verified=found).dumps().encode())


def verify_command(bundle: Path, target: str, precision: str) -> str:
    """What the user types to check engines."""
    return f"lira-edge verify {quoted(bundle)} --target {target} --precision {precision}"


def require_verified(build: Build, bundle: Path) -> None:
    """Raise LiraError for engines of a GPU target that were not verified in the setting that is here."""
    if build.target not in GPU_TARGETS:
        return
    mend = (
        f"run `{verify_command(bundle, build.target, build.precision)}`, or look at what they answer all the "
        "same with `lira-edge run --unverified`"
    )
    if build.verified is None:
        raise LiraError(f"the {build.target}-{build.precision} engines were not verified on a device: {mend}")
    here, there = this_setting(build.target), build.verified.setting
    if here != there:
        raise LiraError(
            f"the {build.target}-{build.precision} engines were verified on {there.text()}; this is "
            f"{here.text()}: {mend}"
        )


def _runtime(target: str) -> str:
    for package in _RUNTIMES[target]:
        try:
            return f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            continue
    return f"{_RUNTIMES[target][0]} of the system"
