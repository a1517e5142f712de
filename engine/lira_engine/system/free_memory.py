"""Give memory that was freed back to the system."""

from __future__ import annotations

import ctypes
import sys


def return_free_memory() -> None:
    """Return to the system what this process has freed and the C library keeps (GNU's does)."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(ctypes.c_size_t(0))
