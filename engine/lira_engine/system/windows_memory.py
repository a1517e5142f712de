"""Ask Windows for the machine's memory."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class WindowsMemory:
    """Bytes: total memory, free memory, and what can be allocated, paging file included."""

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
    """Return the memory; None on other systems, or if Windows does not report it."""
    if sys.platform != "win32":
        return None
    status = _MemoryStatusEx(length=ctypes.sizeof(_MemoryStatusEx))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return WindowsMemory(status.total, status.available, status.available_page)
