"""`lira_engine.cuda.driver.Driver` by pycuda, which is compiled with the CUDA that is there.

pycuda frees an object when its last reference goes, where its context is current or in the thread that opened
it. In any other thread it warns and leaks. So what is dropped waits for the next `current`.
"""

from __future__ import annotations

import atexit
import ctypes
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lira_engine.cuda.driver import Buffer, Event, Stream
from lira_engine.cuda.failures import failed, no_gpu, no_host_room, no_room

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING, which pycuda does not name: such a stream does not wait for the default one, which
others in the process may use."""

Owner = TypeVar("Owner")


class PycudaDriver:
    """`Driver` in the primary context of the device: TensorRT works in that one."""

    def __init__(self, cuda: Any, name: str) -> None:
        """`cuda`: the module `pycuda.driver`. Raises LiraError if CUDA finds no GPU."""
        self.name = name
        self.lock = threading.Lock()
        self._cuda = cuda
        self._dropped: deque[Any] = deque()
        try:
            cuda.init()
            gpu = cuda.Device(0)
            self._context = gpu.retain_primary_context()
        except cuda.Error as error:
            raise no_gpu(error) from None
        major, minor = gpu.compute_capability()
        self.device: str = f"{gpu.name()} sm_{major}{minor}"
        atexit.register(self._end)

    @contextmanager
    def current(self) -> Iterator[None]:
        # Popped: a context that is still current when Python exits aborts the process.
        self._context.push()
        try:
            self._dropped.clear()
            yield
        except self._cuda.Error as error:
            raise failed(self.device, error) from error
        finally:
            self._context.pop()

    def allocate(self, size: int) -> Buffer:
        try:
            allocation = self._cuda.mem_alloc(size)
        except self._cuda.MemoryError:
            raise no_room(self.device, size, *self._cuda.mem_get_info()) from None
        return self._owner(PycudaBuffer(allocation, size), allocation)

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        try:
            raw = self._cuda.pagelocked_empty(shape, dtype)
        except self._cuda.MemoryError:
            raise no_host_room(int(np.prod(shape)) * np.dtype(dtype).itemsize) from None
        memory = (ctypes.c_char * raw.nbytes).from_address(raw.ctypes.data)
        return np.frombuffer(self._owner(memory, raw), dtype).reshape(shape)

    def stream(self) -> Stream:
        raw = self._cuda.Stream(_NON_BLOCKING)
        return self._owner(PycudaStream(raw), raw)

    def event(self) -> Event:
        raw = self._cuda.Event(self._cuda.event_flags.DISABLE_TIMING)
        return self._owner(PycudaEvent(raw), raw)

    def copy_in(self, buffer: Buffer, array: np.ndarray, stream: Stream) -> None:
        self._cuda.memcpy_htod_async(buffer.address, array, _raw(stream))

    def copy_out(self, array: np.ndarray, buffer: Buffer, stream: Stream) -> None:
        self._cuda.memcpy_dtoh_async(array, buffer.address, _raw(stream))

    def copy(self, to: Buffer, source: Buffer, size: int, stream: Stream) -> None:
        self._cuda.memcpy_dtod_async(to.address, source.address, size, _raw(stream))

    def zero(self, buffer: Buffer, stream: Stream) -> None:
        self._cuda.memset_d8_async(buffer.address, 0, buffer.size, _raw(stream))

    def _owner(self, owner: Owner, raw: Any) -> Owner:
        """Keep pycuda's object from when `owner` is dropped until the next `current`."""
        weakref.finalize(owner, self._dropped.append, raw).atexit = False
        return owner

    def _end(self) -> None:
        """Release the context. Left to itself, pycuda calls cuCtxDetach, which CUDA refuses for a primary
        context; objects of a released one it leaves to CUDA."""
        self._context.push()
        self._dropped.clear()
        self._context.detach()


class PycudaBuffer:
    def __init__(self, allocation: Any, size: int) -> None:
        self._allocation = allocation
        self.address = int(allocation)
        self.size = size

    def free(self) -> None:
        self._allocation.free()


class PycudaStream:
    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.handle: int = raw.handle

    def synchronize(self) -> None:
        self.raw.synchronize()

    def wait(self, event: Event) -> None:
        assert isinstance(event, PycudaEvent)
        self.raw.wait_for_event(event.raw)


class PycudaEvent:
    def __init__(self, raw: Any) -> None:
        self.raw = raw

    def record(self, stream: Stream) -> None:
        self.raw.record(_raw(stream))

    def synchronize(self) -> None:
        self.raw.synchronize()


def _raw(stream: Stream) -> Any:
    assert isinstance(stream, PycudaStream)
    return stream.raw
