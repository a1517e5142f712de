"""Which GPU CUDA shows first. CUDA itself is asked: it has its own order of GPUs, and CUDA_VISIBLE_DEVICES
names them by number, by UUID or as parts (MIG)."""

from __future__ import annotations

import ctypes
import sys
import uuid

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def first_gpu() -> str | None:
    """Return the UUID of the first GPU, or of the first part of one, without the prefix that NVML puts before
    it; None if CUDA does not tell."""
    try:
        cuda = ctypes.CDLL(_LIBRARY)
        # The second version also knows parts; it came with CUDA 11.4.
        ask = getattr(cuda, "cuDeviceGetUuid_v2", None) or cuda.cuDeviceGetUuid
        device, found = ctypes.c_int(), (ctypes.c_ubyte * 16)()
        if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0) or ask(ctypes.byref(found), device):
            return None
    except (OSError, AttributeError):
        return None
    return str(uuid.UUID(bytes=bytes(found)))
