"""Tell in one line what ONNX Runtime says on a page: errors of a GPU, its driver and its libraries.

Such an error is a RuntimeError or one of ONNX Runtime's own, and its text is all that tells them apart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from lira_engine.errors import DeviceFailed, LiraError, OutOfMemory, memory_errors_told
from lira_engine.ort.device import Device
from lira_engine.ort.package import ORT_ERRORS
from lira_engine.system.cuda_libraries import library_mend, use_cuda_libraries
from lira_engine.system.machine import gpus

# "CUDA failure 35: TEXT ; GPU=0 ; hostname=NAME ; file=..." of a call, "CUDA error NAME:TEXT" of a kernel,
# "CUBLAS error executing CALL" where nothing else is said.
_LIBRARY = r"\b(CUDA|CUDNN|CUDNN_FE|CUBLAS|CURAND|CUFFT)"
_FAILURES = (
    re.compile(_LIBRARY + r" failure (\d+): *([^;]*)"),
    re.compile(_LIBRARY + r" error (\w+): *([^;]*)"),
    re.compile(_LIBRARY + r" error (executing) (\w+)"),
)
_FULL = re.compile(
    r"AllocateRawInternal|CUDA failure 2:|cudaErrorMemoryAllocation|ALLOC(?:ATION)?_FAILED", re.IGNORECASE
)
_ASKED = re.compile(r"requested buffer of size (\d+)")
_NO_CUDNN = re.compile(r"cuDNN is unavailable|dlopen failed for libcudnn", re.IGNORECASE)
_NO_TENSORRT = re.compile(r"install TensorRT libraries", re.IGNORECASE)
_NODE = re.compile(r"while running (\w+) node\. Name:'([^']*)'")
# Codes of CUDA (cudaError_t), by number and name.
_OLD_DRIVER = ("35", "cudaErrorInsufficientDriver")
_NO_DEVICE = ("100", "cudaErrorNoDevice", "101", "cudaErrorInvalidDevice")
_NO_KERNEL = ("209", "cudaErrorNoKernelImageForDevice")
_BUSY = ("46", "cudaErrorDevicesUnavailable", "802", "cudaErrorSystemNotReady")
_DRIVER_CHANGED = ("803", "cudaErrorSystemDriverMismatch", "804", "cudaErrorCompatNotSupportedOnDevice")


def gpu_errors_told(device: Device) -> AbstractContextManager[None]:
    """Raises DeviceFailed for what a GPU, its driver or its libraries refuse to the block, OutOfMemory for
    memory: the card's, or as `memory_errors_told` the host's. On a CPU there is only that."""
    return memory_errors_told() if device.memory == "cpu" else _on_gpu()


@contextmanager
def _on_gpu() -> Iterator[None]:
    with memory_errors_told():
        try:
            yield
        except (RuntimeError, *ORT_ERRORS) as error:
            told = _told(" ".join(str(error).split()))
            if told is None:
                raise
            raise told from error


def _told(said: str) -> LiraError | None:
    """Return what a message means; None if a GPU has no part in it."""
    if _FULL.search(said):
        return OutOfMemory(_out_of_memory(said))
    node = _NODE.search(said)
    where = f" in {node[1]} {node[2]}".rstrip() if node else ""
    if _NO_CUDNN.search(said):
        return DeviceFailed(f"cuDNN 9 is missing, which the GPU needs{where}: {library_mend()}")
    if _NO_TENSORRT.search(said):
        return DeviceFailed(
            "TensorRT's libraries (libnvinfer, libnvonnxparser) are missing, which --provider tensorrt "
            "needs: install the release that this onnxruntime is for and add its folder to LD_LIBRARY_PATH "
            "(PATH on Windows), or take --provider cuda"
        )
    for form in _FAILURES:
        failure = form.search(said)
        if failure is not None:
            library, code, text = failure.groups()
            return DeviceFailed(_failure(library, code, text.strip(), where))
    return None


def _failure(library: str, code: str, text: str, where: str) -> str:
    """Return the line about a call that failed. `where`: the node that ran, after a space."""
    name = f"{library} {f'failure {code}' if code.isdigit() else code}: {text}"
    if library == "CUDA" and code in _OLD_DRIVER:
        return use_cuda_libraries().old_driver()
    if library == "CUDA" and code in _NO_DEVICE:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if visible is None else f", CUDA_VISIBLE_DEVICES is {visible!r}"
        return (
            f"CUDA finds no GPU ({name}{hidden}): see whether `nvidia-smi` names one; a container sees it if "
            "it was started with NVIDIA's runtime; the same bundle runs with --target cpu"
        )
    if library == "CUDA" and code in _BUSY:
        return f"the GPU takes no work now ({name}): end the program that has it, or wait for its system"
    if library == "CUDA" and code in _DRIVER_CHANGED:
        return f"the driver that runs is not the one that is installed ({name}): start the machine again"
    if library == "CUDA" and code in _NO_KERNEL:
        return f"this onnxruntime has no code for the GPU ({name}): take another release, or --target cpu"
    lacking = use_cuda_libraries().complaint()
    if lacking is not None:
        return f"the GPU failed{where} ({name}): {lacking}"
    return (
        f"the GPU failed{where} ({name}): run it again in a new process; if it fails again, report it with "
        "the output of `lira-edge doctor`"
    )


def _out_of_memory(said: str) -> str:
    asked = _ASKED.search(said)
    found = gpus()
    size = f" for a tensor of {-(-int(asked[1]) >> 20):,} MiB" if asked else ""
    card = f" ({found[0].name}, {found[0].memory})" if len(found) == 1 else ""
    return (
        f"out of memory on the GPU{card}{size}: close other programs that use it (`nvidia-smi` names them), "
        "build with --tiles one or --precision int4, or export with a smaller --context-length"
    )
