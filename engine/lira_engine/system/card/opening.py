"""Open the sensors by the best of what is there."""

from __future__ import annotations

from collections.abc import Callable

from lira_engine.errors import LiraError
from lira_engine.system.card.first_gpu import first_gpu
from lira_engine.system.card.jetson_stats import open_jetson_stats
from lira_engine.system.card.nvidia_smi import open_nvidia_smi
from lira_engine.system.card.nvml import open_nvml
from lira_engine.system.card.sensors import Sensors
from lira_engine.system.machine import jetson


def open_sensors(on_gpu: bool) -> Sensors | None:
    """Open the sensors of the GPU that CUDA shows first, or of the board; None where nothing needs them: for
    engines on a CPU that is on no board.

    On a Jetson jetson-stats comes first: it tells the board's power, of which NVML knows nothing there.
    Raises LiraError, with what each library said, if none of them reads a sensor.
    """
    board = jetson()
    ways: list[Callable[[], Sensors]] = []
    if board is not None:
        ways.append(lambda: open_jetson_stats(board))
    if on_gpu:
        gpu = first_gpu()
        ways += [lambda: open_nvml(gpu), lambda: open_nvidia_smi(gpu)]
    failures = []
    for way in ways:
        try:
            return way()
        except LiraError as error:
            failures.append(str(error))
    if failures:
        raise LiraError("; ".join(failures))
    return None
