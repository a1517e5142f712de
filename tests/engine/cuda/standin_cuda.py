"""A stand-in GPU. `standin_pycuda` and `standin_bindings` give it the interfaces of two packages.

Its memory is host arrays behind made-up addresses. Enqueued work runs only when the host waits for its
stream, or for an event behind it: an early read gets `GARBAGE`, a copy takes what its array holds by then.
What gives wrong numbers or a crash on a device raises `Misuse`.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np

GARBAGE = 0xFF  # as bytes of a float: NaN
PAGE = 4096


class Misuse(AssertionError):
    """No test may see it, unless it provokes it."""


class Gpu:
    """Memory, streams and a record of the copies. All but a few methods need a current context."""

    misuse = Misuse
    name = "Stand-in"
    compute_capability = (8, 7)
    host_size = 1 << 30

    def __init__(self, size: int = 1 << 30) -> None:
        self.size = size
        self.live: dict[int, np.ndarray] = {}  # address -> bytes
        self.host: dict[int, np.ndarray] = {}  # page-locked, by address
        self.streams: dict[int, Stream] = {}
        self.events: set[Event] = set()
        self.leaked: list[str] = []  # what a package could not free
        self.copies: list[tuple[str, int]] = []  # ("in", "out" or "on", bytes)
        self.zeroed = 0
        self.waits = 0  # times that the host waited for the device
        self._next = 0x7F00_0000_0000
        self._handles = 0x5000
        self._thread = threading.local()

    @property
    def used(self) -> int:
        return sum(memory.nbytes for memory in self.live.values())

    @property
    def held(self) -> dict[str, int]:
        """How much there is of each kind of thing."""
        kinds = {"memory": self.live, "host": self.host, "streams": self.streams, "events": self.events}
        return {kind: len(things) for kind, things in kinds.items()}

    @property
    def is_current(self) -> bool:
        return bool(getattr(self._thread, "depth", 0))

    def push(self) -> None:
        self._thread.depth = getattr(self._thread, "depth", 0) + 1

    def pop(self) -> None:
        self.check_current()
        self._thread.depth -= 1

    def check_current(self) -> None:
        if not self.is_current:
            raise Misuse("no context is current in this thread")

    def allocate(self, size: int) -> int:
        self.check_current()
        address = self._next
        self._next += (size // PAGE + 2) * PAGE  # a hole behind each
        self.live[address] = np.full(size, GARBAGE, np.uint8)
        return address

    def free(self, address: int) -> None:
        self.check_current()
        if address not in self.live:
            raise Misuse(f"freed twice: {address:#x}")
        del self.live[address]

    def allocate_host(self, size: int) -> np.ndarray | None:
        """Return memory, or None beyond `host_size`."""
        self.check_current()
        if size > self.host_size:
            return None
        memory = np.full(size, GARBAGE, np.uint8)
        self.host[memory.ctypes.data] = memory
        return memory

    def free_host(self, address: int) -> None:
        self.check_current()
        self.host.pop(address)[:] = GARBAGE

    def new_stream(self, flags: int) -> Stream:
        self.check_current()
        if flags != 1:
            raise Misuse("a stream that waits for the default one")
        self._handles += 16
        self.streams[self._handles] = Stream(self, self._handles)
        return self.streams[self._handles]

    def destroy_stream(self, handle: int) -> None:
        """Free a stream; one with work stays until it is waited for."""
        self.check_current()
        if not self.streams[handle].queue:
            del self.streams[handle]

    def new_event(self, flags: int) -> Event:
        self.check_current()
        if flags != 2:
            raise Misuse("an event that takes times")
        event = Event(self)
        self.events.add(event)
        return event

    def destroy_event(self, event: Event) -> None:
        self.check_current()
        self.events.remove(event)

    def copy_in(self, dest: int, source: np.ndarray, stream: Stream) -> None:
        self.check_current()
        host = HostArray(source)
        self.memory(dest, host.nbytes, "copy in")
        self.copies.append(("in", host.nbytes))

        def copy() -> None:
            self.memory(dest, host.nbytes, "copy in")[:] = host.bytes()

        stream.queue.append(copy)

    def copy_out(self, dest: np.ndarray, source: int, stream: Stream) -> None:
        self.check_current()
        host = HostArray(dest)
        host.bytes()[:] = GARBAGE
        self.memory(source, host.nbytes, "copy out")
        self.copies.append(("out", host.nbytes))

        def copy() -> None:
            host.bytes()[:] = self.memory(source, host.nbytes, "copy out")

        stream.queue.append(copy)

    def copy(self, dest: int, source: int, size: int, stream: Stream) -> None:
        self.check_current()
        self.memory(dest, size, "copy to")
        self.memory(source, size, "copy from")
        self.copies.append(("on", size))

        def copy() -> None:
            self.memory(dest, size, "copy to")[:] = self.memory(source, size, "copy from")

        stream.queue.append(copy)

    def fill(self, dest: int, value: int, size: int, stream: Stream) -> None:
        self.check_current()
        self.memory(dest, size, "set")
        self.zeroed += size

        def fill() -> None:
            self.memory(dest, size, "set")[:] = value

        stream.queue.append(fill)

    def memory(self, address: int, size: int, what: str) -> np.ndarray:
        """Return `size` bytes of one live allocation."""
        for start, memory in self.live.items():
            if start <= address < start + memory.nbytes:
                if address + size > start + memory.nbytes:
                    raise Misuse(f"{what}: {size} bytes at {address:#x} go beyond {memory.nbytes}")
                return memory[address - start : address - start + size]
        raise Misuse(f"{what}: {address:#x} is no memory, or was freed")

    def stream_of(self, handle: int) -> Stream:
        if handle not in self.streams:
            raise Misuse(f"{handle:#x} is no stream")
        return self.streams[handle]

    def pending(self) -> int:
        """Return how much enqueued work has not run yet."""
        return sum(len(stream.queue) for stream in self.streams.values())


class HostArray:
    """The address of an array, as a copy knows it. It does not keep the array alive."""

    def __init__(self, array: np.ndarray) -> None:
        if not array.flags.c_contiguous:
            raise Misuse("a copy of an array that is not contiguous")
        root = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        self.nbytes = array.nbytes
        self._root = weakref.ref(root)
        self._offset = array.ctypes.data - root.ctypes.data

    def bytes(self) -> np.ndarray:
        root = self._root()
        if root is None:
            raise Misuse("the host array of a copy died before the copy")
        return np.ndarray((self.nbytes,), np.uint8, root.data, self._offset)


class Stream:
    def __init__(self, gpu: Gpu, handle: int) -> None:
        self.gpu, self.handle = gpu, handle
        self.queue: deque[Callable[[], None]] = deque()

    def synchronize(self) -> None:
        self.gpu.check_current()
        self.gpu.waits += bool(self.queue)
        while self.queue:
            self.queue.popleft()()

    def wait_for_event(self, event: Event) -> None:
        """Wait for the event's current mark, even if it is recorded again."""
        self.gpu.check_current()
        mark, stream = event.mark, event.stream
        self.queue.append(lambda: _run_until(mark, stream))


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self.mark = [True]  # whether the device has passed it
        self.stream: Stream | None = None

    def record(self, stream: Stream) -> None:
        self._gpu.check_current()
        mark = self.mark = [False]
        self.stream = stream
        stream.queue.append(lambda: mark.__setitem__(0, True))

    def synchronize(self) -> None:
        self._gpu.check_current()
        self._gpu.waits += not self.mark[0]
        _run_until(self.mark, self.stream)


def _run_until(mark: list[bool], stream: Stream | None) -> None:
    """Run the work in `stream` up to its mark."""
    while not mark[0]:
        assert stream is not None
        stream.queue.popleft()()
