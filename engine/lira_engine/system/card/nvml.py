"""Sensors by NVML, NVIDIA's management library, through nvidia-ml-py."""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal

from lira_engine.errors import LiraError, memory_errors_told
from lira_engine.system.card.first_gpu import FirstGpu
from lira_engine.system.card.sensors import Facts, Reading, Source

THROTTLED: Mapping[int, str] = MappingProxyType(
    {
        0x002: "application clocks",
        0x004: "power cap",
        0x008: "hardware slowdown",
        0x010: "sync boost",
        0x020: "temperature",
        0x040: "temperature (hardware)",
        0x080: "power brake",
        0x100: "display clocks",
        0x200: "board limit",
        0x400: "reliability",
    }
)
"""NVML's bits of nvmlDeviceGetCurrentClocksThrottleReasons; 1 is an idle GPU, which is no throttling."""


def open_nvml(gpu: FirstGpu) -> Nvml:
    """Open the sensors of this GPU, or of the only one.

    Raises LiraError if nvidia-ml-py is missing, NVML does not load or start, or it does not know the GPU.
    """
    try:
        with memory_errors_told():
            nvml = importlib.import_module("pynvml")
    except ImportError:
        raise LiraError("nvidia-ml-py is not installed: pip install nvidia-ml-py") from None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise LiraError(f"NVML does not start ({error})") from None
    try:
        return Nvml(nvml, _device(nvml, gpu.uuid), gpu.in_use)
    except BaseException:
        nvml.nvmlShutdown()
        raise


def _device(nvml: Any, uuid: str | None) -> Any:
    """Return NVML's handle of the GPU, or of the part of it."""
    for prefix in ("GPU-", "MIG-") if uuid else ():
        try:
            return nvml.nvmlDeviceGetHandleByUUID(prefix + str(uuid))
        except nvml.NVMLError:
            continue
    try:
        if nvml.nvmlDeviceGetCount() == 1:
            return nvml.nvmlDeviceGetHandleByIndex(0)
    except nvml.NVMLError as error:
        raise LiraError(f"NVML shows no GPU ({error})") from None
    raise LiraError("NVML does not know which GPU CUDA shows first")


class Nvml:
    """Sensors by NVML. What runs on the GPU before this process uses it is another program."""

    source: Source = "nvidia-ml-py"
    power_of: Literal["card", "board"] = "card"

    def __init__(self, nvml: Any, part: Any, in_use: bool = False) -> None:
        """`part`: NVML's handle of a GPU, or of a part of one (MIG), which has a memory of its own and no
        sensors. `in_use`: whether this process uses the GPU already."""
        self._nvml, self._part, self._card = nvml, part, part
        # Older packages lack functions, and the second error.
        mismatch = getattr(nvml, "NVMLLibraryMismatchError", nvml.NVMLError)
        self._errors = (nvml.NVMLError, mismatch, AttributeError)
        self._card = self._ask("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", part) or part
        self._listed = False  # whether NVML lists this process by the number that it has here
        self._since = 0  # until when programs were asked for, microseconds
        self._before = set() if in_use else {one.pid for one in self._programs()}
        memory = self._memory()
        capability = self._ask("nvmlDeviceGetCudaComputeCapability", self._card)
        self.facts = Facts(
            self._ask("nvmlDeviceGetName", part),
            None if memory is None else memory.total >> 20,
            self._ask("nvmlSystemGetDriverVersion"),
            None if capability is None else "{}.{}".format(*capability),
        )

    def read(self) -> Reading:
        nvml, card, memory = self._nvml, self._card, self._memory()
        return Reading(
            clock_mhz=self._ask("nvmlDeviceGetClockInfo", card, nvml.NVML_CLOCK_SM),
            memory_clock_mhz=self._ask("nvmlDeviceGetClockInfo", card, nvml.NVML_CLOCK_MEM),
            power_w=_scaled(self._ask("nvmlDeviceGetPowerUsage", card), 1e-3),
            # A new call of CUDA 13 takes the place of the other one, which CUDA 14 is to drop.
            temperature_c=self._first(
                ("nvmlDeviceGetTemperatureV", card, nvml.NVML_TEMPERATURE_GPU),
                ("nvmlDeviceGetTemperature", card, nvml.NVML_TEMPERATURE_GPU),
            ),
            throttled=_reasons(
                self._first(
                    ("nvmlDeviceGetCurrentClocksThrottleReasons", card),
                    ("nvmlDeviceGetCurrentClocksEventReasons", card),
                )
            ),
            own_mib=_scaled(self._own_bytes(), 2**-20),
            used_mib=None if memory is None else memory.used / 2**20,
        )

    def energy_j(self) -> float | None:
        return _scaled(self._ask("nvmlDeviceGetTotalEnergyConsumption", self._card), 1e-3)

    def busy(self) -> float | None:
        used = self._ask("nvmlDeviceGetUtilizationRates", self._card)
        return None if used is None else used.gpu / 100

    def others(self) -> Mapping[str, float] | None:
        samples = self._ask("nvmlDeviceGetProcessUtilization", self._part, self._since, missing=())
        if samples is None:
            return None
        self._since = max([self._since, *(one.timeStamp for one in samples)])
        used: Counter[str] = Counter()
        for one in samples:
            # In a container this process has another number in NVML: what is new may be this process then.
            foreign = one.pid in self._before or self._listed
            if foreign and one.pid != os.getpid() and one.smUtil:
                used[self._name(one.pid)] += one.smUtil / 100  # type: ignore[assignment]
        return used

    def close(self) -> None:
        self._nvml.nvmlShutdown()

    def _own_bytes(self) -> int | None:
        """Return this process's memory on the GPU. NVML does not list a process in a container by the number
        that it has there, and in Windows' driver model it gives no bytes."""
        own = [one.usedGpuMemory for one in self._programs() if one.pid == os.getpid()]
        self._listed = bool(own)
        return sum(own) if own and None not in own else None

    def _programs(self) -> Iterable[Any]:
        listed: Iterable[Any] | None = self._first(
            ("nvmlDeviceGetComputeRunningProcesses", self._part),
            ("nvmlDeviceGetComputeRunningProcesses_v2", self._part),  # a driver before CUDA 11.8
        )
        return listed or ()

    def _memory(self) -> Any:
        return self._ask("nvmlDeviceGetMemoryInfo", self._part)

    def _name(self, number: int) -> str:
        name: str = self._ask("nvmlSystemGetProcessName", number) or ""
        return name.replace("\\", "/").rpartition("/")[2] or f"process {number}"

    def _first(self, *calls: tuple[Any, ...]) -> Any:
        """Return the first answer of these calls."""
        return next((found for call in calls if (found := self._ask(*call)) is not None), None)

    def _ask(self, name: str, *arguments: Any, missing: Any = None) -> Any:
        """Return what NVML answers; `missing` where it has no samples, None where it does not tell."""
        try:
            call: Callable[..., Any] = getattr(self._nvml, name)
            return call(*arguments)
        except self._errors as error:
            # nvidia-ml-py also raises success, where there are no samples.
            nothing = (self._nvml.NVML_SUCCESS, self._nvml.NVML_ERROR_NOT_FOUND)
            return missing if getattr(error, "value", None) in nothing else None


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _reasons(bits: int | None) -> frozenset[str] | None:
    if bits is None:
        return None
    return frozenset(word for bit, word in THROTTLED.items() if bits & bit)
