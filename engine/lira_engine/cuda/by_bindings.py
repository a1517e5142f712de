"""`lira_engine.cuda.driver.Driver` by NVIDIA's cuda-bindings, which has wheels.

It calls CUDA's driver API, with functions that every driver from CUDA 12.0 on has. The package's runtime API
holds a CUDA runtime of its own, and that of 13.x does not start with a driver for CUDA 12 (JetPack 6).

What is dropped, in whatever thread, is freed in the next `current`; at the end of the process CUDA frees
everything.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from lira_engine.cuda.driver import Buffer, Event, Stream
from lira_engine.cuda.failures import failed, no_gpu, no_host_room, no_room

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

_LONGEST_NAME = 256


class _Refused(Exception):
    """A call did not succeed. `code`: its CUresult."""

    def __init__(self, function: Callable[..., Any], code: Any) -> None:
        super().__init__(f"{function.__name__} failed: {getattr(code, 'name', code)}")
        self.code = code


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result, or several, of a function of cuda.bindings. Raises _Refused."""
    code, *results = function(*arguments)
    if int(code):
        raise _Refused(function, code)
    return results[0] if len(results) == 1 else results


class BindingsDriver:
    """`Driver` in the primary context of the device: TensorRT works in that one."""

    def __init__(self, cuda: Any, name: str) -> None:
        """`cuda`: the module `cuda.bindings.driver`. Raises LiraError if CUDA finds no GPU; RuntimeError if
        there is no libcuda, or one that is too old."""
        self.name = name
        self.lock = threading.Lock()
        self._cuda = cuda
        self._dropped: deque[tuple[Callable[..., Any], Any]] = deque()
        is_major = cuda.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        is_minor = cuda.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
        try:
            _call(cuda.cuInit, 0)
            gpu = _call(cuda.cuDeviceGet, 0)
            title = _call(cuda.cuDeviceGetName, _LONGEST_NAME, gpu).partition(b"\0")[0].decode()
            major, minor = (_call(cuda.cuDeviceGetAttribute, which, gpu) for which in (is_major, is_minor))
            self._context = _call(cuda.cuDevicePrimaryCtxRetain, gpu)
        except _Refused as error:
            raise no_gpu(error) from None
        self.device: str = f"{title} sm_{major}{minor}"

    @contextmanager
    def current(self) -> Iterator[None]:
        try:
            _call(self._cuda.cuCtxPushCurrent, self._context)
            try:
                self._free_dropped()
                yield
            finally:
                _call(self._cuda.cuCtxPopCurrent)
        except _Refused as error:
            raise failed(self.device, error) from error

    def allocate(self, size: int) -> Buffer:
        cuda = self._cuda
        try:
            address = int(_call(cuda.cuMemAlloc, size))
        except _Refused as error:
            if error.code != cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
                raise
            raise no_room(self.device, size, *_call(cuda.cuMemGetInfo)) from None
        buffer = BindingsBuffer(cuda, address, size)
        buffer.kept = self._when_dropped(buffer, cuda.cuMemFree, address)
        return buffer

    def pinned(self, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        try:
            address: int = _call(self._cuda.cuMemHostAlloc, size, 0)
        except _Refused as error:
            if error.code != self._cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
                raise
            raise no_host_room(size) from None
        memory: Any = (ctypes.c_char * size).from_address(address)
        self._when_dropped(memory, self._cuda.cuMemFreeHost, address)
        return np.frombuffer(memory, dtype).reshape(shape)

    def stream(self) -> Stream:
        # It does not wait for the default stream, which others in the process may use.
        flags = self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING
        stream = BindingsStream(self._cuda, _call(self._cuda.cuStreamCreate, flags))
        self._when_dropped(stream, self._cuda.cuStreamDestroy, stream.raw)
        return stream

    def event(self) -> Event:
        flags = self._cuda.CUevent_flags.CU_EVENT_DISABLE_TIMING
        event = BindingsEvent(self._cuda, _call(self._cuda.cuEventCreate, flags))
        self._when_dropped(event, self._cuda.cuEventDestroy, event.raw)
        return event

    def copy_in(self, buffer: Buffer, array: np.ndarray, stream: Stream) -> None:
        _call(self._cuda.cuMemcpyHtoDAsync, buffer.address, array, array.nbytes, _raw(stream))

    def copy_out(self, array: np.ndarray, buffer: Buffer, stream: Stream) -> None:
        _call(self._cuda.cuMemcpyDtoHAsync, array, buffer.address, array.nbytes, _raw(stream))

    def copy(self, to: Buffer, source: Buffer, size: int, stream: Stream) -> None:
        _call(self._cuda.cuMemcpyDtoDAsync, to.address, source.address, size, _raw(stream))

    def zero(self, buffer: Buffer, stream: Stream) -> None:
        _call(self._cuda.cuMemsetD8Async, buffer.address, 0, buffer.size, _raw(stream))

    def _when_dropped(self, owner: object, free: Callable[..., Any], handle: Any) -> weakref.finalize:
        finalizer = weakref.finalize(owner, self._dropped.append, (free, handle))
        finalizer.atexit = False
        return finalizer

    def _free_dropped(self) -> None:
        with suppress(IndexError):  # another thread may free the last one
            while True:
                _call(*self._dropped.popleft())


class BindingsBuffer:
    kept: weakref.finalize

    def __init__(self, cuda: Any, address: int, size: int) -> None:
        self._cuda, self.address, self.size = cuda, address, size

    def free(self) -> None:
        self.kept.detach()
        _call(self._cuda.cuMemFree, self.address)


class BindingsStream:
    def __init__(self, cuda: Any, raw: Any) -> None:
        self._cuda, self.raw = cuda, raw
        self.handle = int(raw)

    def synchronize(self) -> None:
        _call(self._cuda.cuStreamSynchronize, self.raw)

    def wait(self, event: Event) -> None:
        assert isinstance(event, BindingsEvent)
        _call(self._cuda.cuStreamWaitEvent, self.raw, event.raw, 0)


class BindingsEvent:
    def __init__(self, cuda: Any, raw: Any) -> None:
        self._cuda, self.raw = cuda, raw

    def record(self, stream: Stream) -> None:
        _call(self._cuda.cuEventRecord, self.raw, _raw(stream))

    def synchronize(self) -> None:
        _call(self._cuda.cuEventSynchronize, self.raw)


def _raw(stream: Stream) -> Any:
    assert isinstance(stream, BindingsStream)
    return stream.raw
