"""`pycuda.driver` for a stand-in GPU: what `lira_engine.cuda.by_pycuda` uses of it.

Like the real one (2026.1) it frees an object when its last reference goes, where its context is current, or
in the thread that opened it; elsewhere the object leaks. And a context that was not detached ends badly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np


class Context:
    """The primary context. `end`: what happens if its last reference goes."""

    def __init__(self, gpu: Any) -> None:
        self._gpu, self._opener, self.valid = gpu, threading.get_ident(), True

    def push(self) -> None:
        self._gpu.push()

    def pop(self) -> None:
        self._gpu.pop()

    def detach(self) -> None:
        self._gpu.pop()
        self.valid = False

    def drop(self, what: str, free: Callable[..., None], *arguments: Any) -> None:
        """Free an object whose last reference is going."""
        if not self.valid:
            return
        if self._gpu.is_current:
            free(*arguments)
        elif threading.get_ident() == self._opener:
            self.push()
            free(*arguments)
            self.pop()
        else:
            self._gpu.leaked.append(what)

    def end(self) -> None:
        if self.valid:
            self._gpu.leaked.append("context")


class Stream:
    def __init__(self, gpu: Any, context: Context, flags: int) -> None:
        self.real, self._context = gpu.new_stream(flags), context
        self.handle = self.real.handle

    def synchronize(self) -> None:
        self.real.synchronize()

    def wait_for_event(self, event: Event) -> None:
        self.real.wait_for_event(event.real)

    def __del__(self) -> None:
        self._context.drop("stream", self.real.gpu.destroy_stream, self.handle)


class Event:
    def __init__(self, gpu: Any, context: Context, flags: int) -> None:
        self.real, self._gpu, self._context = gpu.new_event(flags), gpu, context

    def record(self, stream: Stream) -> None:
        self.real.record(stream.real)

    def synchronize(self) -> None:
        self.real.synchronize()

    def __del__(self) -> None:
        self._context.drop("event", self._gpu.destroy_event, self.real)


class DeviceAllocation:
    def __init__(self, gpu: Any, context: Context, size: int) -> None:
        self._address = 0
        self._gpu, self._context = gpu, context
        self._address = gpu.allocate(size)

    def __int__(self) -> int:
        return int(self._address)

    def free(self) -> None:
        self._gpu.free(self._address)

    def __del__(self) -> None:
        if self._address in self._gpu.live:
            self._context.drop("device_allocation", self._gpu.free, self._address)


class PagelockedHostAllocation:
    """What an array of page-locked memory keeps alive."""

    def __init__(self, gpu: Any, context: Context, size: int) -> None:
        self._gpu, self._context, self.memory = gpu, context, gpu.allocate_host(size)
        self.__array_interface__ = self.memory.__array_interface__

    def __del__(self) -> None:
        self._context.drop("pagelocked_host_allocation", self._gpu.free_host, self.memory.ctypes.data)


def pycuda_driver(gpu: Any) -> ModuleType:
    """Return the module, with a `context` for tests."""
    context = Context(gpu)

    class Error(Exception):
        pass

    class OutOfMemory(Error):
        pass

    class Device:
        def __init__(self, number: int) -> None:
            assert number == 0

        def name(self) -> str:
            return str(gpu.name)

        def compute_capability(self) -> tuple[int, int]:
            found: tuple[int, int] = gpu.compute_capability
            return found

        def retain_primary_context(self) -> Context:
            return context

    class event_flags:
        DISABLE_TIMING = 2

    def mem_alloc(size: int) -> DeviceAllocation:
        if gpu.used + size > gpu.size:
            raise OutOfMemory("cuMemAlloc failed: out of memory")
        return DeviceAllocation(gpu, context, size)

    def pagelocked_empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size > gpu.host_size:
            raise OutOfMemory("cuMemHostAlloc failed: out of memory")
        array: np.ndarray = np.asarray(PagelockedHostAllocation(gpu, context, size))
        return array.view(dtype).reshape(shape)

    def memcpy_htod_async(dest: int, src: np.ndarray, stream: Stream) -> None:
        gpu.copy_in(dest, src, stream.real)

    def memcpy_dtoh_async(dest: np.ndarray, src: int, stream: Stream) -> None:
        gpu.copy_out(dest, src, stream.real)

    def memcpy_dtod_async(dest: int, src: int, size: int, stream: Stream) -> None:
        gpu.copy(dest, src, size, stream.real)

    def memset_d8_async(dest: int, data: int, count: int, stream: Stream) -> None:
        gpu.fill(dest, data, count, stream.real)

    module = ModuleType("pycuda.driver")
    vars(module).update(
        context=context,
        Error=Error,
        MemoryError=OutOfMemory,
        init=lambda: None,
        Device=Device,
        Stream=lambda flags: Stream(gpu, context, flags),
        Event=lambda flags: Event(gpu, context, flags),
        event_flags=event_flags,
        mem_alloc=mem_alloc,
        mem_get_info=lambda: (gpu.size - gpu.used, gpu.size),
        pagelocked_empty=pagelocked_empty,
        memcpy_htod_async=memcpy_htod_async,
        memcpy_dtoh_async=memcpy_dtoh_async,
        memcpy_dtod_async=memcpy_dtod_async,
        memset_d8_async=memset_d8_async,
    )
    return module
