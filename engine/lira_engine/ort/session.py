"""Open ONNX Runtime sessions with our options, and explain why one cannot be opened."""

from __future__ import annotations

import mmap
import re
import sys
from functools import cache
from pathlib import Path

import numpy as np

from lira_engine.errors import LiraError, OutOfMemory
from lira_engine.ort.device import CPU, Device
from lira_engine.ort.gpu_errors import gpu_errors_told
from lira_engine.ort.package import ORT_ERRORS, onnxruntime, said, version
from lira_engine.system.cores import default_threads
from lira_engine.system.cuda_libraries import use_cuda_libraries
from lira_engine.system.extras import ENGINES_FROM, PORTABLE_FROM

_FATAL = 4
_PER_THREAD = 72 << 20
"""Bytes of address space: 8 MiB of stack, and 64 MiB that the GNU C library reserves for allocations."""


def bind_input(binding: onnxruntime.IOBinding, name: str, array: np.ndarray) -> None:
    """Bind an array's own memory; the caller keeps it alive until the run is over.

    A device with its own memory gets a copy now: bind an array that changes again before each run.
    """
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def bind_output(binding: onnxruntime.IOBinding, name: str, array: np.ndarray) -> None:
    """Let a run write into an array's own memory; the caller keeps it alive until the run is over."""
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


@cache
def _share_arena() -> None:
    """Register one arena for all sessions, which grows by the requested size (the default doubles it)."""
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    same_as_requested = onnxruntime.OrtArenaCfg({"arena_extend_strategy": 1})
    onnxruntime.create_and_register_allocator(memory, same_as_requested)


@cache
def shrinking_arena() -> onnxruntime.RunOptions:
    """Return options of a run after which the arena frees the memory that it no longer needs."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def run_options(device: Device) -> onnxruntime.RunOptions | None:
    """Return options of a run with large tensors. A GPU's arena keeps its memory: freeing it waits for the
    device."""
    return shrinking_arena() if device.memory == "cpu" else None


def _check_threads(threads: int | None) -> None:
    """Raises OutOfMemory if the system refuses the address space that a session's threads reserve: ONNX
    Runtime would fail anywhere, or crash."""
    if threads is None or threads == 1 or sys.platform != "linux":
        return
    try:
        with mmap.mmap(-1, (threads - 1) * _PER_THREAD):
            pass
    except OSError as error:
        raise OutOfMemory(
            f"the system refused the address space of {threads} threads ({(threads - 1) * _PER_THREAD >> 20} "
            "MiB): take --threads 1, or raise the limit (ulimit -v, the container's)"
        ) from error


def open_session(
    path: Path,
    threads: int | None = None,
    prepack: bool = True,
    reuse: bool = False,
    device: Device = CPU,
    profile: Path | None = None,
    fuse: bool = True,
) -> onnxruntime.InferenceSession:
    """Open a session on `device`.

    `threads` None takes one for each fast core (system.cores). `prepack` False keeps weights as they
    are: a second copy, in the order in which kernels read, pays only if a session runs more than once.
    `reuse` True plans ahead which tensors share a buffer: a percent faster if a run takes milliseconds, but a
    stage with large tensors may take twice the memory. `profile`: prefix of the path of a profile of its
    runs. `fuse` False runs the graph's nodes as they are.
    Raises LiraError with the reason if ONNX Runtime does not accept the file or the device, and OutOfMemory
    if the system or the device refuses memory, or the system threads.
    """
    if device.memory != "cpu":
        use_cuda_libraries()
    options = onnxruntime.SessionOptions()
    # Warnings are about graphs, not for users, an exception repeats its error, and which library a GPU lacks
    # we say ourselves. On a GPU an error is logged even where cuDNN has another way, which is then taken.
    onnxruntime.set_default_logger_severity(_FATAL)
    options.log_severity_level = _FATAL
    # ONNX Runtime's memory plans save calls of the allocator, but a buffer lives until its last reuse, and a
    # second run allocates all buffers at once. A buffer for each tensor halves the pixel encoder's peak, and
    # with an arena it is no slower.
    options.enable_mem_reuse = reuse
    options.enable_mem_pattern = False
    _share_arena()
    options.add_session_config_entry("session.use_env_allocators", "1")
    # int4 weights behind DequantizeLinear, as in TensorRT's graphs: matmuls in fp32, not int8.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    for key, value in device.session_entries().items():
        options.add_session_config_entry(key, value)
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    # ONNX Runtime's own number counts slow cores and cores of other containers, and pins a thread to each.
    threads = default_threads() if threads is None else threads
    if threads is not None:
        options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if not fuse:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    _check_threads(threads)
    try:
        # With fallback it would try again on the CPU, and say so only in its log.
        with gpu_errors_told(device):
            session = onnxruntime.InferenceSession(
                str(path), options, providers=device.session_providers(), enable_fallback=0
            )
    except (RuntimeError, *ORT_ERRORS) as error:
        raise LiraError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {_why(error)}; it says: "
            f"{said(error)}"
        ) from error
    lacking = [name for name in device.providers if name not in session.get_providers()]
    if lacking:
        reason = use_cuda_libraries().complaint() or (
            f"most likely because libraries of {' and '.join(lacking)} are missing: see `lira-edge doctor`"
        )
        raise LiraError(
            f"ONNX Runtime {onnxruntime.__version__} could not start {' and '.join(lacking)}: {reason}"
        )
    return session


_TOO_NEW = re.compile(
    r"IR[_ ]version|opset \S+ is (?:still )?under|not a registered (?:function|op)|No Op registered|"
    r"Could not find an implementation",
    re.IGNORECASE,
)
"""What ONNX Runtime says of graphs that are newer than itself."""


def _why(error: Exception) -> str:
    """Return why a graph does not load: only an older ONNX Runtime may lack what a graph needs."""
    if version() >= PORTABLE_FROM or not _TOO_NEW.search(str(error)):
        return "it is damaged: build the engines again with --force, or copy or export the bundle again"
    portable, engines = (".".join(map(str, one)) for one in (PORTABLE_FROM, ENGINES_FROM))
    return (
        f"expected {portable} or newer for a portable graph, {engines} or newer for an engine that "
        "`lira-edge build BUNDLE` made"
    )
