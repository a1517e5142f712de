"""The setting of a run: processor, driver and the package that executes engines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from lira_engine.errors import LiraError
from lira_engine.system.extras import installed, onnxruntimes
from lira_engine.system.machine import cpu_name, gpus, jetson


@dataclass(frozen=True)
class Setting:
    """The facts that may change the results of an engine file.

    Attributes:
        device: the processor's name. driver: its version, or a Jetson's L4T; "" if there is none.
        runtime: the package that executes engines, with its version.
    """

    device: str
    driver: str
    runtime: str

    def text(self) -> str:
        driver = f", driver {self.driver}" if self.driver else ""
        return f"{self.device}{driver}, {self.runtime}"


def cpu_setting(runtimes: Sequence[str]) -> Setting:
    """Return this machine's processor, and the first of `runtimes` (distributions) that is installed."""
    return Setting(cpu_name(), "", _runtime(runtimes))


def gpu_setting(target: str, runtimes: Sequence[str]) -> Setting:
    """Return this machine's NVIDIA GPUs, and the first of `runtimes` that is installed. Raises LiraError if
    there is no GPU."""
    runtime = _runtime(runtimes)
    board = jetson()
    if board is not None:
        return Setting(board.model, board.l4t, runtime)
    found = gpus()
    if not found:
        raise LiraError(
            f"target {target} needs an NVIDIA GPU, nvidia-smi names none: see `lira-edge doctor`; "
            "the same bundle runs on this machine with --target cpu"
        )
    # CUDA numbers GPUs in its own order: the names alone do not tell which one it uses.
    names, visible = ", ".join(gpu.name for gpu in found), os.environ.get("CUDA_VISIBLE_DEVICES")
    device = names if visible is None else f"{names} (CUDA_VISIBLE_DEVICES {visible})"
    return Setting(device, found[0].driver, runtime)


def _runtime(packages: Sequence[str]) -> str:
    others = onnxruntimes() if "onnxruntime" in packages else ()  # such as JetPack's
    for package in (*packages, *others):
        version = installed(package)
        if version is not None:
            return f"{package} {version}"
    return f"{packages[0]} of the system"
