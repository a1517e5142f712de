"""Errors about refused memory or threads are recognised, similar ones are not."""

from __future__ import annotations

import errno
import os

import cv2
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException

from lira_engine.errors import LiraError, OutOfMemory, out_of_memory

MEMORY = [
    MemoryError(),
    MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,) and data type float64"),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ImportError("libfoo.so.3: failed to map segment from shared object"),
    ImportError("/a/b.so: cannot map zero-fill pages: Cannot allocate memory"),
    OSError("libbar.so: failed to map segment from shared object"),
    RuntimeException("[ONNXRuntimeError] : 6 : Exception during initialization: std::bad_alloc"),
    RuntimeException("Failed to allocate memory for requested buffer of size 4294967296"),
    RuntimeException("CUDA failure 2: out of memory ; GPU=0"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you"),
    cv2.error("(-4:Insufficient memory) Failed to allocate 8589934592 bytes in function 'OutOfMemoryError'"),
]
THREADS = [
    RuntimeError("can't start new thread"),
    RuntimeError("env.cc:327 PosixThread pthread_create failed, error code: 11 error msg: try again"),
    OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)),  # fork
]
OTHERS = [
    ImportError("libgomp.so.1: cannot allocate memory in static TLS block"),
    ImportError("libfoo.so: failed to map segment from shared object: Operation not permitted"),
    ImportError("No module named 'onnxruntime'"),
    FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "out of memory.png"),
    ValueError("invalid literal for int() with base 10: 'out of memory'"),
    KeyError("pthread_create failed"),
    BlockingIOError(errno.EAGAIN, "write could not complete without blocking", 0),
    LiraError("there is no task 'out of memory'"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", MEMORY, ids=lambda error: str(error)[:40])
def test_refused_memory_is_recognised(error: BaseException) -> None:
    said = out_of_memory(error)
    assert said is not None and said.startswith("out of memory (") and "close other programs" in said
    assert len(said) < 300 and "\n" not in said


@pytest.mark.parametrize("error", THREADS, ids=lambda error: str(error)[:40])
def test_refused_threads_are_recognised(error: BaseException) -> None:
    said = out_of_memory(error)
    assert said is not None and said.startswith("the system refused a thread") and "--threads 1" in said


@pytest.mark.parametrize("error", OTHERS, ids=lambda error: str(error)[:40])
def test_similar_errors_are_not_recognised(error: BaseException) -> None:
    assert out_of_memory(error) is None


def test_the_cause_of_an_error_is_recognised() -> None:
    def raised() -> BaseException:
        try:
            try:
                raise MemoryError("Unable to allocate 1 GiB")
            except MemoryError:
                raise LiraError("photo.jpg is damaged or cut short: Unable to allocate 1 GiB") from None
        except LiraError as error:
            return error

    said = out_of_memory(raised())
    assert said is not None and "Unable to allocate 1 GiB" in said and "damaged" not in said


def test_the_message_of_out_of_memory_is_kept() -> None:
    assert out_of_memory(OutOfMemory("out of memory (of the compiler)")) == "out of memory (of the compiler)"
