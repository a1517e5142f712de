"""`cuda.bindings.driver` for a stand-in GPU: what `lira_engine.cuda.by_bindings` uses of it.

Functions return a code and their results, in tuples. `test_real_packages` compares names and arguments with
the real package.
"""

from __future__ import annotations

import enum
from types import ModuleType
from typing import Any

import numpy as np


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_ILLEGAL_ADDRESS = 700


class CUdevice_attribute(enum.IntEnum):
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76


class CUstream_flags(enum.IntEnum):
    CU_STREAM_NON_BLOCKING = 1


class CUevent_flags(enum.IntEnum):
    CU_EVENT_DISABLE_TIMING = 2


class Handle:
    """A CUstream, a CUevent or a CUdeviceptr: an object that is also a number."""

    def __init__(self, value: int, real: Any = None) -> None:
        self._value, self.real = value, real

    def __int__(self) -> int:
        return self._value


DONE = (CUresult.CUDA_SUCCESS,)


def bindings_driver(gpu: Any) -> ModuleType:
    """Return the module. `module.fails` is a CUresult that waits return if it is set."""
    module = ModuleType("cuda.bindings.driver")
    context = object()

    def cuInit(Flags: int) -> tuple[Any, ...]:
        return DONE

    def cuDeviceGet(ordinal: int) -> tuple[Any, ...]:
        return (*DONE, ordinal)

    def cuDeviceGetName(length: int, dev: Any) -> tuple[Any, ...]:
        return (*DONE, gpu.name.encode() + b"\0 ")

    def cuDeviceGetAttribute(attrib: Any, dev: Any) -> tuple[Any, ...]:
        major, minor = gpu.compute_capability
        is_major = attrib == CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        return (*DONE, major if is_major else minor)

    def cuDevicePrimaryCtxRetain(dev: Any) -> tuple[Any, ...]:
        return (*DONE, context)

    def cuCtxPushCurrent(ctx: Any) -> tuple[Any, ...]:
        assert ctx is context
        gpu.push()
        return DONE

    def cuCtxPopCurrent() -> tuple[Any, ...]:
        gpu.pop()
        return (*DONE, context)

    def cuMemAlloc(bytesize: int) -> tuple[Any, ...]:
        if gpu.used + bytesize > gpu.size:
            return (CUresult.CUDA_ERROR_OUT_OF_MEMORY, None)
        return (*DONE, Handle(gpu.allocate(bytesize)))

    def cuMemFree(dptr: int) -> tuple[Any, ...]:
        gpu.free(dptr)
        return DONE

    def cuMemGetInfo() -> tuple[Any, ...]:
        return (*DONE, gpu.size - gpu.used, gpu.size)

    def cuMemHostAlloc(bytesize: int, Flags: int) -> tuple[Any, ...]:
        memory = gpu.allocate_host(bytesize)
        if memory is None:
            return (CUresult.CUDA_ERROR_OUT_OF_MEMORY, None)
        return (*DONE, memory.ctypes.data)

    def cuMemFreeHost(p: int) -> tuple[Any, ...]:
        gpu.free_host(p)
        return DONE

    def cuStreamCreate(Flags: int) -> tuple[Any, ...]:
        stream = gpu.new_stream(Flags)
        return (*DONE, Handle(stream.handle, stream))

    def cuStreamDestroy(hStream: Handle) -> tuple[Any, ...]:
        gpu.destroy_stream(int(hStream))
        return DONE

    def cuStreamSynchronize(hStream: Handle) -> tuple[Any, ...]:
        hStream.real.synchronize()
        return (module.fails,)

    def cuStreamWaitEvent(hStream: Handle, hEvent: Handle, Flags: int) -> tuple[Any, ...]:
        hStream.real.wait_for_event(hEvent.real)
        return DONE

    def cuEventCreate(Flags: int) -> tuple[Any, ...]:
        event = gpu.new_event(Flags)
        return (*DONE, Handle(id(event), event))

    def cuEventDestroy(hEvent: Handle) -> tuple[Any, ...]:
        gpu.destroy_event(hEvent.real)
        return DONE

    def cuEventRecord(hEvent: Handle, hStream: Handle) -> tuple[Any, ...]:
        hEvent.real.record(hStream.real)
        return DONE

    def cuEventSynchronize(hEvent: Handle) -> tuple[Any, ...]:
        hEvent.real.synchronize()
        return (module.fails,)

    def cuMemcpyHtoDAsync(
        dstDevice: int, srcHost: np.ndarray, ByteCount: int, hStream: Handle
    ) -> tuple[Any, ...]:
        assert ByteCount == srcHost.nbytes
        gpu.copy_in(dstDevice, srcHost, hStream.real)
        return DONE

    def cuMemcpyDtoHAsync(
        dstHost: np.ndarray, srcDevice: int, ByteCount: int, hStream: Handle
    ) -> tuple[Any, ...]:
        assert ByteCount == dstHost.nbytes
        gpu.copy_out(dstHost, srcDevice, hStream.real)
        return DONE

    def cuMemcpyDtoDAsync(dstDevice: int, srcDevice: int, ByteCount: int, hStream: Handle) -> tuple[Any, ...]:
        gpu.copy(dstDevice, srcDevice, ByteCount, hStream.real)
        return DONE

    def cuMemsetD8Async(dstDevice: int, uc: int, N: int, hStream: Handle) -> tuple[Any, ...]:
        gpu.fill(dstDevice, uc, N, hStream.real)
        return DONE

    functions = {name: value for name, value in locals().items() if name.startswith("cu")}
    vars(module).update(
        functions,
        fails=CUresult.CUDA_SUCCESS,
        CUresult=CUresult,
        CUdevice_attribute=CUdevice_attribute,
        CUstream_flags=CUstream_flags,
        CUevent_flags=CUevent_flags,
    )
    return module
