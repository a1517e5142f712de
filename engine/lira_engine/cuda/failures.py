"""What is said if CUDA refuses something, whichever package makes its calls."""

from __future__ import annotations

from lira_engine.errors import DeviceFailed, OutOfMemory


def no_gpu(reason: object) -> DeviceFailed:
    """Return the error that CUDA does not start."""
    return DeviceFailed(f"CUDA finds no GPU to work with ({_line(reason)}): see `lira-edge doctor`")


def failed(device: str, reason: object) -> DeviceFailed:
    """Return the error that a call failed, or work that was enqueued before it."""
    return DeviceFailed(
        f"CUDA failed on {device}: {_line(reason)}; nothing more can run in this process, see "
        "`lira-edge doctor`"
    )


def no_room(device: str, size: int, free: int, total: int) -> OutOfMemory:
    """Return the error that the device has no `size` bytes, and which it has."""
    return OutOfMemory(
        f"{device} has {free >> 20:,} of {total >> 20:,} MiB free, {-(-size >> 20):,} MiB more are needed: "
        "close other programs on it, build int4 engines, or export the bundle with a shorter context"
    )


def no_host_room(size: int) -> OutOfMemory:
    """Return the error that the system locks no `size` bytes of its own memory for the device."""
    return OutOfMemory(
        f"the system gives no {-(-size >> 20):,} MiB of page-locked memory: close other programs, or raise "
        "the limit of locked memory (ulimit -l, the container's)"
    )


def _line(reason: object) -> str:
    return " ".join(str(reason).split())
