"""A library with NVML's functions, behind the real nvidia-ml-py: names, arguments and structures are its own.

Handles are made-up addresses: 0x10 the first card, 0x20 the second, 0x11 a part of the first one (MIG).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

NOT_SUPPORTED, NOT_FOUND, INSUFFICIENT_SIZE = 3, 6, 7
NO_BYTES = 2**64 - 1  # what NVML writes for memory that it does not know
FIRST, SECOND, PART = 0x10, 0x20, 0x11
UUIDS = {
    "GPU-00000000-0000-0000-0000-000000000001": FIRST,
    "GPU-00000000-0000-0000-0000-000000000002": SECOND,
    "MIG-00000000-0000-0000-0000-000000000011": PART,
}


@dataclass
class Card:
    """What the functions answer. `lacks`: functions that answer "not supported"; `absent`: that the library
    does not have. `programs`: (process, bytes). `used`: (process, percent, microseconds)."""

    names: dict[int, str] = field(
        default_factory=lambda: {FIRST: "Card A", SECOND: "Card B", PART: "Card A MIG 1g.10gb"}
    )
    count: int = 1
    memory: tuple[int, int] = (24 << 30, 3 << 30)  # total, used
    clocks: dict[int, int] = field(default_factory=lambda: {1: 1980, 2: 2619})
    milliwatts: int = 350_500
    millijoules: int = 10**12
    degrees: int = 61
    reasons: int = 0
    busy: int = 0
    programs: list[tuple[int, int]] = field(default_factory=list)
    used: list[tuple[int, int, int]] = field(default_factory=list)
    lacks: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    asked: list[tuple[str, int]] = field(default_factory=list)  # function, handle
    opened: int = 0


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def _set_handle(reference: Any, address: int) -> int:
    ctypes.c_void_p.from_buffer(reference._obj).value = address
    return 0


def _set(reference: Any, value: int) -> int:
    reference._obj.value = value
    return 0


def library(card: Card) -> Any:
    """Return the library."""

    def init(flags: Any) -> int:
        card.opened += 1
        return 0

    def shutdown() -> int:
        card.opened -= 1
        return 0

    def by_uuid(uuid: Any, found: Any) -> int:
        address = UUIDS.get(uuid.value.decode())
        return NOT_FOUND if address is None else _set_handle(found, address)

    def parent(part: Any, found: Any) -> int:
        return _set_handle(found, FIRST) if _address(part) == PART else NOT_FOUND

    def name(handle: Any, buffer: Any, size: Any) -> int:
        buffer.value = card.names[_address(handle)].encode()
        return 0

    def driver(buffer: Any, size: Any) -> int:
        buffer.value = b"580.95"
        return 0

    def process_name(number: Any, buffer: Any, size: Any) -> int:
        buffer.value = b"/usr/bin/python%d" % number.value
        return 0

    def memory(handle: Any, found: Any) -> int:
        total, used = card.memory
        found._obj.total, found._obj.used, found._obj.free = total, used, total - used
        return 0

    def capability(handle: Any, major: Any, minor: Any) -> int:
        return _set(major, 8) or _set(minor, 9)

    def clock(handle: Any, kind: Any, found: Any) -> int:
        return _set(found, card.clocks[kind.value])

    def temperature_v(handle: Any, found: Any) -> int:
        found._obj.temperature = card.degrees
        return 0

    def utilization(handle: Any, found: Any) -> int:
        found._obj.gpu, found._obj.memory = card.busy, 0
        return 0

    def programs(handle: Any, count: Any, found: Any) -> int:
        if not card.programs:
            return _set(count, 0)
        if found is None:
            return _set(count, len(card.programs)) or INSUFFICIENT_SIZE
        for number, (process, size) in enumerate(card.programs):
            found[number].pid, found[number].usedGpuMemory = process, size
        return _set(count, len(card.programs))

    def used(handle: Any, found: Any, count: Any, since: Any) -> int:
        newer = [one for one in card.used if one[2] > since.value]
        if not newer:
            return NOT_FOUND
        if found is None:
            return _set(count, len(newer)) or INSUFFICIENT_SIZE
        for number, (process, percent, at) in enumerate(newer):
            found[number].pid, found[number].smUtil, found[number].timeStamp = process, percent, at
        return _set(count, len(newer))

    functions: dict[str, Callable[..., int]] = {
        "nvmlInitWithFlags": init,
        "nvmlShutdown": shutdown,
        "nvmlDeviceGetCount_v2": lambda found: _set(found, card.count),
        "nvmlDeviceGetHandleByIndex_v2": lambda index, found: _set_handle(found, FIRST),
        "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": parent,
        "nvmlDeviceGetName": name,
        "nvmlSystemGetDriverVersion": driver,
        "nvmlSystemGetProcessName": process_name,
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetCudaComputeCapability": capability,
        "nvmlDeviceGetClockInfo": clock,
        "nvmlDeviceGetPowerUsage": lambda handle, found: _set(found, card.milliwatts),
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle, found: _set(found, card.millijoules),
        "nvmlDeviceGetTemperatureV": temperature_v,
        "nvmlDeviceGetTemperature": lambda handle, sensor, found: _set(found, card.degrees),
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle, found: _set(found, card.reasons),
        "nvmlDeviceGetCurrentClocksEventReasons": lambda handle, found: _set(found, card.reasons),
        "nvmlDeviceGetUtilizationRates": utilization,
        "nvmlDeviceGetComputeRunningProcesses_v3": programs,
        "nvmlDeviceGetComputeRunningProcesses_v2": programs,
        "nvmlDeviceGetProcessUtilization": used,
    }

    def answering(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if name.startswith("nvmlDeviceGet") and "Handle" not in name and "Count" not in name:
                card.asked.append((name, _address(arguments[0])))
            return NOT_SUPPORTED if name in card.lacks else functions[name](*arguments)

        return call

    class Library:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            if name in card.absent or name not in functions:
                raise AttributeError(name)
            return answering(name)

    return Library()
