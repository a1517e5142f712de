"""The first GPU by CUDA itself, on a library of stand-in functions."""

from __future__ import annotations

import ctypes
import uuid
from typing import Any

import pytest

from lira_engine.system.card import first_gpu
from lira_engine.system.card.first_gpu import FirstGpu

UUID = "12345678-9abc-def0-1234-56789abcdef0"


def library(**changes: Any) -> Any:
    """CUDA's functions; `changes`: other answers, None for a function that is not there."""

    def write(found: Any, device: Any) -> int:
        assert device.value == 5
        ctypes.memmove(found, uuid.UUID(UUID).bytes, 16)
        return 0

    def device(found: Any, number: int) -> int:
        assert number == 0
        found._obj.value = 5
        return 0

    functions = {"cuInit": lambda flags: 0, "cuDeviceGet": device, "cuDeviceGetUuid": write}
    functions |= {"cuDeviceGetUuid_v2": write, "cuDevicePrimaryCtxGetState": lambda device, flags, active: 0}
    there = {name: call for name, call in (functions | changes).items() if call is not None}
    return type("Cuda", (), {name: staticmethod(call) for name, call in there.items()})()


def in_use(device: Any, flags: Any, active: Any) -> int:
    active._obj.value = 1
    return 0


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, FirstGpu(UUID)),
        ({"cuDeviceGetUuid": None}, FirstGpu(UUID)),
        ({"cuDeviceGetUuid_v2": None}, FirstGpu(UUID)),  # before CUDA 11.4
        ({"cuDeviceGetUuid": None, "cuDeviceGetUuid_v2": None}, FirstGpu()),
        ({"cuDevicePrimaryCtxGetState": in_use}, FirstGpu(UUID, in_use=True)),
        ({"cuInit": lambda flags: 100}, FirstGpu()),  # no GPU
        ({"cuDeviceGet": lambda found, number: 101}, FirstGpu()),
        ({"cuDeviceGetUuid_v2": lambda found, device: 1}, FirstGpu()),
    ],
)
def test_cuda_names_the_gpu(
    changes: dict[str, Any], found: FirstGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library(**changes))
    assert first_gpu.first_gpu() == found


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", fail)
    assert first_gpu.first_gpu() == FirstGpu()
