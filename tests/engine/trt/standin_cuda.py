"""A stand-in GPU with the interface of `pycuda.driver`.

Its memory is host arrays behind made-up addresses. Enqueued work runs only when the host waits for its
stream, or for an event behind it: an early read gets `GARBAGE`, a copy takes what its array holds by then.
What gives wrong numbers or a crash on a device raises `Misuse`.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

GARBAGE = 0xFF  # as bytes of a float: NaN
PAGE = 4096


class Misuse(AssertionError):
    """No test may see it, unless it provokes it."""


class Gpu:
    """Memory, streams and a record of the copies."""

    misuse = Misuse

    def __init__(self, size: int = 1 << 30) -> None:
        self.size = size
        self.live: dict[int, np.ndarray] = {}  # address -> bytes
        self.streams: dict[int, Stream] = {}
        self.copies: list[tuple[str, int]] = []  # ("in" or "out", bytes)
        self.zeroed = 0
        self.waits = 0  # times that the host waited for the device
        self._next = 0x7F00_0000_0000
        self._thread = threading.local()

    @property
    def used(self) -> int:
        return sum(memory.nbytes for memory in self.live.values())

    def push(self) -> None:
        self._thread.depth = getattr(self._thread, "depth", 0) + 1

    def pop(self) -> None:
        self.check_current()
        self._thread.depth -= 1

    def check_current(self) -> None:
        if not getattr(self._thread, "depth", 0):
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
    def __init__(self, gpu: Gpu) -> None:
        gpu.check_current()
        self.gpu = gpu
        self.queue: deque[Callable[[], None]] = deque()
        self.handle = 0x5000 + 16 * len(gpu.streams)
        gpu.streams[self.handle] = self

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
        gpu.check_current()
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


class Allocation:
    def __init__(self, gpu: Gpu, size: int) -> None:
        self._gpu = gpu
        self._address = gpu.allocate(size)

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        self._gpu.free(self._address)


def pycuda_driver(gpu: Gpu) -> ModuleType:
    """Return a module with what `lira_engine.cuda.driver` uses of `pycuda.driver`, for `gpu`."""

    class Error(Exception):
        pass

    class OutOfMemory(Error):
        pass

    def mem_alloc(size: int) -> Allocation:
        if gpu.used + size > gpu.size:
            raise OutOfMemory("cuMemAlloc failed: out of memory")
        return Allocation(gpu, size)

    def pagelocked_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        gpu.check_current()
        array = np.empty(shape, dtype)
        array.view(np.uint8)[...] = GARBAGE
        return array

    def memcpy_htod_async(dest: int, src: np.ndarray, stream: Stream) -> None:
        gpu.check_current()
        host = HostArray(src)
        gpu.memory(dest, host.nbytes, "copy in")
        gpu.copies.append(("in", host.nbytes))

        def copy() -> None:
            gpu.memory(dest, host.nbytes, "copy in")[:] = host.bytes()

        stream.queue.append(copy)

    def memcpy_dtoh_async(dest: np.ndarray, src: int, stream: Stream) -> None:
        gpu.check_current()
        host = HostArray(dest)
        host.bytes()[:] = GARBAGE
        gpu.memory(src, host.nbytes, "copy out")
        gpu.copies.append(("out", host.nbytes))

        def copy() -> None:
            host.bytes()[:] = gpu.memory(src, host.nbytes, "copy out")

        stream.queue.append(copy)

    def memcpy_dtod_async(dest: int, src: int, size: int, stream: Stream) -> None:
        gpu.check_current()
        gpu.memory(dest, size, "copy"), gpu.memory(src, size, "copy")

        def copy() -> None:
            gpu.memory(dest, size, "copy")[:] = gpu.memory(src, size, "copy")

        stream.queue.append(copy)

    def memset_d8_async(dest: int, data: int, size: int, stream: Stream) -> None:
        gpu.check_current()
        gpu.memory(dest, size, "set")
        gpu.zeroed += size

        def fill() -> None:
            gpu.memory(dest, size, "set")[:] = data

        stream.queue.append(fill)

    def stream(flags: int) -> Stream:
        if flags != 1:
            raise Misuse("a stream that waits for the default one")
        return Stream(gpu)

    def device(ordinal: int) -> SimpleNamespace:
        context = SimpleNamespace(push=gpu.push, pop=gpu.pop)
        return SimpleNamespace(
            name=lambda: "Stand-in",
            compute_capability=lambda: (8, 7),
            retain_primary_context=lambda: context,
        )

    module = ModuleType("pycuda.driver")
    vars(module).update(
        Error=Error,
        MemoryError=OutOfMemory,
        init=lambda: None,
        Device=device,
        Stream=stream,
        Event=lambda flags: Event(gpu),
        event_flags=SimpleNamespace(DISABLE_TIMING=2),
        mem_alloc=mem_alloc,
        mem_get_info=lambda: (gpu.size - gpu.used, gpu.size),
        pagelocked_empty=pagelocked_empty,
        memcpy_htod_async=memcpy_htod_async,
        memcpy_dtoh_async=memcpy_dtoh_async,
        memcpy_dtod_async=memcpy_dtod_async,
        memset_d8_async=memset_d8_async,
    )
    return module
