"""The first GPU by CUDA itself, on a library of stand-in functions."""

from __future__ import annotations

import ctypes
import uuid
from typing import Any

import pytest

from lira_engine.system.card import first_gpu

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
    functions["cuDeviceGetUuid_v2"] = write
    there = {name: call for name, call in (functions | changes).items() if call is not None}
    return type("Cuda", (), {name: staticmethod(call) for name, call in there.items()})()


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, UUID),
        ({"cuDeviceGetUuid": None}, UUID),
        ({"cuDeviceGetUuid_v2": None}, UUID),  # before CUDA 11.4
        ({"cuDeviceGetUuid": None, "cuDeviceGetUuid_v2": None}, None),
        ({"cuInit": lambda flags: 100}, None),  # no GPU
        ({"cuDeviceGet": lambda found, number: 101}, None),
        ({"cuDeviceGetUuid_v2": lambda found, device: 1}, None),
    ],
)
def test_cuda_names_the_gpu(
    changes: dict[str, Any], found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library(**changes))
    assert first_gpu.first_gpu() == found


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", fail)
    assert first_gpu.first_gpu() is None
