"""Which GPU CUDA shows first. CUDA itself is asked: it has its own order of GPUs, and CUDA_VISIBLE_DEVICES
names them by number, by UUID or as parts (MIG)."""

from __future__ import annotations

import ctypes
import sys
import uuid
from dataclasses import dataclass

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


@dataclass(frozen=True)
class FirstGpu:
    """The GPU, or the part of one, that this process uses first.

    Attributes:
        uuid: without the prefix that NVML puts before it; None if CUDA does not tell.
        in_use: whether this process has memory there already.
    """

    uuid: str | None = None
    in_use: bool = False


def first_gpu() -> FirstGpu:
    """Ask CUDA, without using the GPU."""
    device, found = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    flags, active = ctypes.c_uint(), ctypes.c_int()
    try:
        cuda = ctypes.CDLL(_LIBRARY)
        # The second version also knows parts; it came with CUDA 11.4.
        ask = getattr(cuda, "cuDeviceGetUuid_v2", None) or cuda.cuDeviceGetUuid
        if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0) or ask(ctypes.byref(found), device):
            return FirstGpu()
        cuda.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(active))
    except (OSError, AttributeError):
        return FirstGpu()
    return FirstGpu(str(uuid.UUID(bytes=bytes(found))), bool(active.value))
