"""The CUDA calls that the runners need. Only this file uses pycuda: anything with the `Driver` protocol can
replace it."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lira_engine.errors import LiraError, memory_errors_told
from lira_engine.system.extras import install_line
from lira_engine.trt.flavour import PACKAGES

if TYPE_CHECKING:
    from numpy.typing import DTypeLike


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
    """One GPU. Create, use and free buffers, streams and events inside `current`."""

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

    def zero(self, buffer: Buffer, stream: Stream) -> None:
        """Enqueue filling a buffer with zeros."""
        ...


_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING, which pycuda does not name: such a stream does not wait for the default one, which
others in the process may use."""


def open_driver(target: str) -> Driver:
    """Open the first GPU that CUDA shows (CUDA_VISIBLE_DEVICES chooses).

    Raises LiraError if pycuda is missing or does not load, or if CUDA finds no GPU.
    """
    try:
        with memory_errors_told():
            cuda = importlib.import_module("pycuda.driver")
    except ImportError as error:
        reason = " ".join(str(error).split())[:200]
        if isinstance(error, ModuleNotFoundError):
            mend = install_line(PACKAGES[target].extra)
            raise LiraError(f"target {target} needs pycuda ({reason}): {mend}") from None
        # libcuda comes with the driver, pycuda's other libraries with the CUDA that it was compiled with.
        mend = (
            "install NVIDIA's driver (or let the container see it): `nvidia-smi` must name the GPU"
            if "libcuda." in reason
            else "install the driver, and compile pycuda with the installed CUDA: "
            "pip install --force-reinstall --no-cache-dir pycuda"
        )
        raise LiraError(f"target {target}: pycuda is there and does not load ({reason}): {mend}") from None
    return _cuda_driver(cuda)


@cache
def _cuda_driver(cuda: ModuleType) -> CudaDriver:
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
