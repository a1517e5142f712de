"""`lira_engine.cuda.driver.Driver` by pycuda."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from lira_engine.cuda.driver import Buffer, Event, Stream
from lira_engine.errors import LiraError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING, which pycuda does not name: such a stream does not wait for the default one, which
others in the process may use."""


@cache
def cuda_driver(cuda: ModuleType) -> CudaDriver:
    """Return the only driver of this process: when a primary context's last object goes, pycuda leaves the
    context current, and TensorRT may be using it."""
    return CudaDriver(cuda)


class CudaDriver:
    """`Driver` by pycuda, in the primary context of the device: TensorRT works in that one."""

    def __init__(self, cuda: Any) -> None:
        self.lock = threading.Lock()
        self._cuda = cuda
        try:
            cuda.init()
            gpu = cuda.Device(0)
            self._context = gpu.retain_primary_context()
        except cuda.Error as error:
            raise LiraError(f"CUDA finds no GPU to work with ({error}): see `lira-edge doctor`") from None
        major, minor = gpu.compute_capability()
        self.device: str = f"{gpu.name()} sm_{major}{minor}"

    @contextmanager
    def current(self) -> Iterator[None]:
        # Popped: a context that is still current when Python exits aborts the process.
        self._context.push()
        try:
            yield
        except self._cuda.Error as error:
            reason = " ".join(str(error).split())
            raise LiraError(
                f"CUDA failed on {self.device}: {reason}; nothing more can run in this process, see "
                "`lira-edge doctor`"
            ) from error
        finally:
            self._context.pop()

    def allocate(self, size: int) -> Buffer:
        try:
            return CudaBuffer(self._cuda.mem_alloc(size), size)
        except self._cuda.MemoryError:
            free, total = (amount >> 20 for amount in self._cuda.mem_get_info())
            raise LiraError(
                f"{self.device} has {free:,} of {total:,} MiB free, {-(-size >> 20):,} MiB more are needed: "
                "close other programs on it, build int4 engines, or export the bundle with a shorter context"
            ) from None

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        array: np.ndarray = self._cuda.pagelocked_empty(shape, dtype)
        return array

    def stream(self) -> Stream:
        return CudaStream(self._cuda.Stream(_NON_BLOCKING))

    def event(self) -> Event:
        return CudaEvent(self._cuda.Event(self._cuda.event_flags.DISABLE_TIMING))

    def copy_in(self, buffer: Buffer, array: np.ndarray, stream: Stream) -> None:
        self._cuda.memcpy_htod_async(buffer.address, array, _raw(stream))

    def copy_out(self, array: np.ndarray, buffer: Buffer, stream: Stream) -> None:
        self._cuda.memcpy_dtoh_async(array, buffer.address, _raw(stream))

    def copy(self, to: Buffer, source: Buffer, size: int, stream: Stream) -> None:
        self._cuda.memcpy_dtod_async(to.address, source.address, size, _raw(stream))

    def zero(self, buffer: Buffer, stream: Stream) -> None:
        self._cuda.memset_d8_async(buffer.address, 0, buffer.size, _raw(stream))


class CudaBuffer:
    def __init__(self, allocation: Any, size: int) -> None:
        self._allocation = allocation
        self.address = int(allocation)
        self.size = size

    def free(self) -> None:
        self._allocation.free()


class CudaStream:
    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.handle: int = raw.handle

    def synchronize(self) -> None:
        self.raw.synchronize()

    def wait(self, event: Event) -> None:
        assert isinstance(event, CudaEvent)
        self.raw.wait_for_event(event.raw)


class CudaEvent:
    def __init__(self, raw: Any) -> None:
        self.raw = raw

    def record(self, stream: Stream) -> None:
        self.raw.record(_raw(stream))

    def synchronize(self) -> None:
        self.raw.synchronize()


def _raw(stream: Stream) -> Any:
    assert isinstance(stream, CudaStream)
    return stream.raw
