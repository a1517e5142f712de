"""The CUDA calls that runners and the benchmark need, as protocols."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from lira_engine.errors import LiraError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike


DriverName = Literal["auto", "pycuda", "cuda-bindings"]
"""The package that makes CUDA's calls. "auto": pycuda where it is installed, else cuda-bindings."""


def check_driver(name: str) -> DriverName:
    """Return the name of a driver. Raises LiraError for any other text."""
    for known in get_args(DriverName):
        if name == known:
            return known  # type: ignore[no-any-return]
    *others, last = get_args(DriverName)
    raise LiraError(f"the driver is {name!r}; expected {', '.join(others)} or {last}")


class Buffer(Protocol):
    """Device memory."""

    @property
    def address(self) -> int: ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def free(self) -> None:
        """Free the memory. Call it once, when no stream uses it any more."""
        ...


class Stream(Protocol):
    """A CUDA stream: its work runs in order, concurrently with other streams."""

    @property
    def handle(self) -> int: ...

    def synchronize(self) -> None:
        """Wait for all work enqueued so far."""
        ...

    def wait(self, event: Event) -> None:
        """Make work enqueued from now on start after the device has passed the event's mark. Returns at
        once."""
        ...


class Event(Protocol):
    """A CUDA event: a mark in a stream."""

    def record(self, stream: Stream) -> None:
        """Put the mark behind the work in `stream` now; drop an earlier mark."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has passed the mark; return at once if there is none."""
        ...


class Driver(Protocol):
    """One GPU. Create, use and free buffers, streams and events inside `current`. What is dropped, in
    whatever thread, the driver frees."""

    @property
    def name(self) -> str:
        """The package that makes the calls, and its version."""
        ...

    @property
    def device(self) -> str:
        """Name and compute capability."""
        ...

    @property
    def lock(self) -> threading.Lock:
        """Hold it while freeing memory that another stage may read, and while reading it."""
        ...

    def current(self) -> AbstractContextManager[None]:
        """Make the device current in this thread for the block. Raises LiraError for CUDA's errors."""
        ...

    def allocate(self, size: int) -> Buffer:
        """Return `size` uninitialized bytes. Raises LiraError if the device has no room."""
        ...

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """Return uninitialized page-locked host memory, which the device can access itself."""
        ...

    def stream(self) -> Stream: ...

    def event(self) -> Event: ...

    def copy_in(self, buffer: Buffer, array: np.ndarray, stream: Stream) -> None:
        """Enqueue a copy of a contiguous array to the start of a buffer. The array must live, unchanged,
        until the stream has passed the copy."""
        ...

    def copy_out(self, array: np.ndarray, buffer: Buffer, stream: Stream) -> None:
        """Enqueue a copy of a buffer's start into a contiguous array; valid when the stream has passed it."""
        ...

    def copy(self, to: Buffer, source: Buffer, size: int, stream: Stream) -> None:
        """Enqueue a copy of a buffer's first `size` bytes to the start of another one."""
        ...

    def zero(self, buffer: Buffer, stream: Stream) -> None:
        """Enqueue filling a buffer with zeros."""
        ...
