"""Import ONNX Runtime. Raises LiraError, with the command that installs it, if it is missing or broken."""

from __future__ import annotations

import re

from lira_engine.errors import LiraError, memory_errors_told
from lira_engine.system.extras import install_line

try:
    with memory_errors_told():
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as _state
except ImportError as error:
    missing = isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime"
    found = "is not installed" if missing else f"cannot be loaded ({' '.join(str(error).split())[:120]})"
    raise LiraError(
        f"ONNX Runtime {found}: {install_line('cpu')}, or on a machine with an NVIDIA GPU "
        f"{install_line('cuda')}"
    ) from error

ORT_ERRORS = (
    _state.Fail,
    _state.InvalidArgument,
    _state.InvalidGraph,
    _state.InvalidProtobuf,
    _state.NoSuchFile,
    _state.NotImplemented,
    _state.RuntimeException,
)
"""Errors that ONNX Runtime's calls raise."""


# The class of an error, its file, and where in ONNX Runtime's source it was found, which says where that was
# compiled.
_NOISE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed: ?"
    r"|\S*[/\\][\w.]+\.(?:cc|cpp|cu|h|hpp|cuh):\d+ (?:[^()]*?\w+::[^()]*\([^()]*\)(?: const)? "
    r"(?:\[with [^\]]*\] )?)?"
)

_READ = 2000  # characters


def said(error: Exception) -> str:
    """Return what an error of ONNX Runtime says, in a line of at most 300 characters."""
    text = " ".join(str(error)[:_READ].split())  # of names of a graph's making: the search is not linear
    return _NOISE.sub("", text)[:300].strip()


def version() -> tuple[int, ...]:
    """Return ONNX Runtime's version: (major, minor)."""
    return tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
