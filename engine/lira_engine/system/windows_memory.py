"""Memory of a Windows machine, as the system counts it."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class WindowsMemory:
    """Bytes: the whole memory, what of it is free, and what may be asked for, paging file included."""

    total: int
    available: int
    committable: int


class _MemoryStatusEx(ctypes.Structure):
    """`MEMORYSTATUSEX` of sysinfoapi.h; sizes are DWORD and DWORDLONG on every Windows."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("total", ctypes.c_uint64),
        ("available", ctypes.c_uint64),
        ("total_page", ctypes.c_uint64),
        ("available_page", ctypes.c_uint64),
        ("total_virtual", ctypes.c_uint64),
        ("available_virtual", ctypes.c_uint64),
        ("available_extended", ctypes.c_uint64),
    )


def windows_memory() -> WindowsMemory | None:
    """None on other systems, and where Windows does not say."""
    if sys.platform != "win32":
        return None
    status = _MemoryStatusEx(length=ctypes.sizeof(_MemoryStatusEx))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return WindowsMemory(status.total, status.available, status.available_page)
