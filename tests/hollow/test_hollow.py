"""The hollow CUDA itself, beside what CUDA's documentation says: what rests on it is no better than it is."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

HOST_TO_HOST, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE = range(4)
GLOBAL = 0  # cudaStreamCaptureModeGlobal
INVALID_VALUE, OUT_OF_MEMORY, INVALID_HANDLE, CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED = 1, 2, 400, 900, 901


@pytest.fixture
def cuda(hollow: Path) -> Iterator[ctypes.CDLL]:
    """The runtime, whose last error is forgotten afterwards: others in this process ask for it."""
    library = ctypes.CDLL(str(next(hollow.glob("libcudart.so.*"))))
    yield library
    library.cudaGetLastError()


@pytest.fixture
def allocate(cuda: ctypes.CDLL) -> Iterator[Callable[[int], ctypes.c_void_p]]:
    """Returns device memory, which is freed afterwards."""
    taken: list[ctypes.c_void_p] = []

    def take(size: int) -> ctypes.c_void_p:
        taken.append(ctypes.c_void_p())
        assert cuda.cudaMalloc(ctypes.byref(taken[-1]), ctypes.c_size_t(size)) == 0
        return taken[-1]

    yield take
    for pointer in taken:
        assert cuda.cudaFree(pointer) == 0


def handle(create: Any) -> ctypes.c_void_p:
    made = ctypes.c_void_p()
    assert create(ctypes.byref(made)) == 0
    return made


def copy(cuda: ctypes.CDLL, to: Any, source: Any, size: int, stream: Any = None) -> int:
    """Return the error of an asynchronous copy; the direction that is given is not what decides."""
    given = [ctypes.c_void_p(one.ctypes.data) if isinstance(one, np.ndarray) else one for one in (to, source)]
    return int(cuda.cudaMemcpyAsync(*given, ctypes.c_size_t(size), HOST_TO_HOST, stream))


def test_copies_keep_their_bytes_and_are_told_apart(
    cuda: ctypes.CDLL, allocate: Any, asking: Callable[[], Any]
) -> None:
    one, other = allocate(64), allocate(64)
    values, back = np.arange(16, dtype=np.int32), np.zeros(16, np.int32)
    pinned = ctypes.c_void_p()
    assert cuda.cudaMallocHost(ctypes.byref(pinned), ctypes.c_size_t(64)) == 0
    with asking() as asked:
        assert copy(cuda, one, values, 64) == 0
        assert copy(cuda, other, one, 64) == 0
        assert copy(cuda, pinned, other, 64) == 0
        assert copy(cuda, back, other, 32) == 0
    assert (back[:8] == values[:8]).all() and not back[8:].any()
    assert list((ctypes.c_int32 * 16).from_address(pinned.value or 0)) == list(range(16))
    assert cuda.cudaFreeHost(pinned) == 0
    assert asked.copies == {
        ("host", "device", 64): 1,
        ("device", "device", 64): 1,
        ("device", "pinned", 64): 1,
        ("device", "host", 32): 1,
    }
    assert (asked.bytes(to_device=True), asked.bytes(to_device=False), asked.bytes_on_device) == (64, 96, 64)


def test_a_copy_beyond_an_allocation_fails(cuda: ctypes.CDLL, allocate: Any) -> None:
    memory, values = allocate(512), np.zeros(4096, np.uint8)
    assert copy(cuda, memory, values, 512) == 0
    assert copy(cuda, memory, values, 513) == INVALID_VALUE
    inside = ctypes.c_void_p((memory.value or 0) + 500)
    assert copy(cuda, inside, values, 13) == INVALID_VALUE
    assert cuda.cudaFree(inside) == INVALID_VALUE


def test_memory_that_was_freed_is_gone_and_comes_back_as_zeros(cuda: ctypes.CDLL, allocate: Any) -> None:
    first = ctypes.c_void_p()
    size = (3 << 20) + 700  # whole pages, and a part of one
    assert cuda.cudaMalloc(ctypes.byref(first), ctypes.c_size_t(size)) == 0
    assert copy(cuda, first, np.ones(size, np.uint8), size) == 0
    assert cuda.cudaFree(first) == 0
    assert copy(cuda, first, np.ones(8, np.uint8), 8) == INVALID_VALUE
    assert cuda.cudaFree(first) == INVALID_VALUE
    back = np.ones(size, np.uint8)
    assert copy(cuda, back, allocate(size), size) == 0 and not back.any()


class Dim3(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint) for name in "xyz"]


def test_what_a_kernel_may_have_changed_is_zeros(
    cuda: ctypes.CDLL, allocate: Any, asking: Callable[[], Any]
) -> None:
    memory, values, back = allocate(64), np.arange(1, 17, dtype=np.int32), np.zeros(16, np.int32)
    half = ctypes.c_void_p((memory.value or 0) + 32)
    assert copy(cuda, memory, values, 64) == 0
    with asking() as asked:
        assert cuda.cudaLaunchKernel(None, Dim3(1, 1, 1), Dim3(1, 1, 1), None, ctypes.c_size_t(0), None) == 0
    assert asked.kernels == {"unknown": 1}
    assert copy(cuda, half, values, 32) == 0
    assert copy(cuda, back, memory, 64) == 0
    assert back.tolist() == [0] * 8 + list(range(1, 9))


def test_the_host_cannot_read_device_memory(hollow: Path) -> None:
    code = (
        "import ctypes, sys\n"
        "cuda, p = ctypes.CDLL(sys.argv[1]), ctypes.c_void_p()\n"
        "assert cuda.cudaMalloc(ctypes.byref(p), ctypes.c_size_t(64)) == 0\n"
        "print('taken', flush=True)\n"
        "ctypes.string_at(p, 1)\n"
    )
    library = str(next(hollow.glob("libcudart.so.*")))
    done = subprocess.run([sys.executable, "-c", code, library], capture_output=True, text=True)
    assert done.stdout == "taken\n" and done.returncode == -11  # SIGSEGV


def test_memory_ends(cuda: ctypes.CDLL) -> None:
    pointer = ctypes.c_void_p()
    assert cuda.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(1 << 40)) == OUT_OF_MEMORY
    assert cuda.cudaGetLastError() == OUT_OF_MEMORY and cuda.cudaGetLastError() == 0


def test_a_capture_runs_when_its_graph_is_launched(
    cuda: ctypes.CDLL, allocate: Any, asking: Callable[[], Any]
) -> None:
    stream, memory = handle(cuda.cudaStreamCreate), allocate(4)
    values, graph, ready = np.array([7], np.int32), ctypes.c_void_p(), ctypes.c_void_p()
    assert cuda.cudaStreamBeginCapture(stream, GLOBAL) == 0
    assert copy(cuda, memory, values, 4, stream) == 0
    assert cuda.cudaStreamEndCapture(stream, ctypes.byref(graph)) == 0
    back = np.zeros(1, np.int32)
    assert copy(cuda, back, memory, 4) == 0 and back[0] == 0
    assert cuda.cudaGraphInstantiate(ctypes.byref(ready), graph, ctypes.c_ulonglong(0)) == 0
    for value in (8, 9):
        values[:] = value  # the graph keeps the address
        with asking() as asked:
            assert cuda.cudaGraphLaunch(ready, stream) == 0
        assert copy(cuda, back, memory, 4) == 0 and back[0] == value
        assert asked.copies == {("host", "device", 4): 1}
        assert asked.graphs[-1] == {"nodes": 1, "pageable_copies": 1, "launches": 1, "error": 0}
    assert cuda.cudaGraphDestroy(graph) == 0 and cuda.cudaGraphExecDestroy(ready) == 0
    assert cuda.cudaStreamDestroy(stream) == 0
    assert cuda.cudaStreamDestroy(stream) == INVALID_HANDLE


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaStreamSynchronize", "cudaDeviceSynchronize"])
def test_what_a_capture_forbids_ends_it(cuda: ctypes.CDLL, call: str) -> None:
    stream, graph, pointer = handle(cuda.cudaStreamCreate), ctypes.c_void_p(), ctypes.c_void_p()
    taken = (ctypes.byref(pointer), ctypes.c_size_t(8))
    arguments = {"cudaMalloc": taken, "cudaStreamSynchronize": (stream,)}
    assert cuda.cudaStreamBeginCapture(stream, GLOBAL) == 0
    assert cuda[call](*arguments.get(call, ())) == CAPTURE_UNSUPPORTED
    assert cuda.cudaStreamEndCapture(stream, ctypes.byref(graph)) == CAPTURE_INVALIDATED and not graph.value
    assert cuda.cudaStreamDestroy(stream) == 0 and cuda.cudaDeviceSynchronize() == 0


def test_onnx_runtime_captures_and_launches_a_graph(asking: Callable[[], Any]) -> None:
    import onnxruntime

    from lira_engine.ort.device import cuda_device

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 8]) for name in "xy")
    weights = numpy_helper.from_array(np.ones((8, 8), np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    graph = helper.make_graph(nodes, "two", [x], [y], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    cuda_device("fp32")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(),
        providers=[("CUDAExecutionProvider", {"enable_cuda_graph": "1"}), "CPUExecutionProvider"],
        enable_fallback=0,
    )
    binding = session.io_binding()
    given = onnxruntime.OrtValue.ortvalue_from_numpy(np.ones((4, 8), np.float32), "cuda", 0)
    made = onnxruntime.OrtValue.ortvalue_from_shape_and_type((4, 8), np.float32, "cuda", 0)
    binding.bind_ortvalue_input("x", given)
    binding.bind_ortvalue_output("y", made)
    session.run_with_iobinding(binding)
    with asking() as asked:
        session.run_with_iobinding(binding)
    calls = {"cudaGraphLaunch", "cudaStreamSynchronize", "cudaSetDevice", "cudaGetDevice"}
    assert asked.calls.keys() <= calls
    assert asked.graphs[-1] == {"nodes": 2, "pageable_copies": 0, "launches": 1, "error": 0}
    assert sorted(asked.kernels.values()) == [1, 1] and any("Relu" in name for name in asked.kernels)
