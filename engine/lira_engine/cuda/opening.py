"""Open the GPU by the package that is there."""

from __future__ import annotations

import ctypes
import importlib
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType, ModuleType

from lira_engine.cuda.driver import Driver, DriverName
from lira_engine.errors import LiraError, memory_errors_told
from lira_engine.system.extras import install_line, installed


@dataclass(frozen=True)
class _Package:
    """A package that makes CUDA's calls.

    Attributes:
        module: its module with CUDA's driver API. install: the command that installs it. again: what helps if
            it does not load although there is a libcuda.
    """

    module: str
    install: str
    again: str


_PACKAGES: Mapping[DriverName, _Package] = MappingProxyType(
    {
        "pycuda": _Package(
            "pycuda.driver",
            install_line("pycuda"),
            "compile it with the installed CUDA, `pip install --force-reinstall --no-cache-dir pycuda`, or "
            "take --driver cuda-bindings",
        ),
        "cuda-bindings": _Package(
            "cuda.bindings.driver",
            "pip install cuda-bindings",
            "pip install --force-reinstall cuda-bindings",
        ),
    }
)
"""By name, in the order in which "auto" takes them."""


def open_driver(choice: DriverName = "auto") -> Driver:
    """Open the first GPU that CUDA shows (CUDA_VISIBLE_DEVICES chooses).

    All calls with one package get the same driver: its context must outlast what TensorRT has in it.
    Raises LiraError if no package is installed, if one is and does not load, and if CUDA finds no GPU.
    """
    for name in _names(choice):
        module = _module(name)
        if module is not None:
            try:
                return _opened(name, module)
            except RuntimeError as error:  # cuda-bindings loads libcuda at its first call
                raise _does_not_load(name, error) from None
    raise LiraError(_lacking(choice))


def missing_package(choice: DriverName = "auto") -> str | None:
    """Return that nothing is installed that makes CUDA's calls, and the command that installs it; or None."""
    return None if any(installed(name) for name in _names(choice)) else _lacking(choice)


@cache
def _opened(name: DriverName, module: ModuleType) -> Driver:
    title = f"{name} {installed(name) or 'of the system'}"
    if name == "pycuda":
        from lira_engine.cuda.by_pycuda import PycudaDriver

        return PycudaDriver(module, title)
    from lira_engine.cuda.by_bindings import BindingsDriver

    return BindingsDriver(module, title)


def _names(choice: DriverName) -> tuple[DriverName, ...]:
    return tuple(_PACKAGES) if choice == "auto" else (choice,)


def _lacking(choice: DriverName) -> str:
    names = _names(choice)
    return f"CUDA's calls need {' or '.join(names)}: {_PACKAGES[names[-1]].install}"


def _module(name: DriverName) -> ModuleType | None:
    """Return the module of a package; None if it is not installed. Raises LiraError if it does not load."""
    path = _PACKAGES[name].module
    try:
        with memory_errors_told(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pycuda guesses why it fails, before it does
            return importlib.import_module(path)
    except (ImportError, RuntimeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and path.startswith(error.name):
            return None
        raise _does_not_load(name, error) from None


def _does_not_load(name: DriverName, error: Exception) -> LiraError:
    reason = " ".join(str(error).split())[:200]
    mend = _PACKAGES[name].again
    if not _libcuda_loads():
        mend = "install NVIDIA's driver (or let the container see it): `nvidia-smi` must name the GPU"
    elif isinstance(error, RuntimeError):
        mend = "NVIDIA's driver is too old for it: update it to 525 or newer (CUDA 12)"
    return LiraError(f"{name} is there and does not load ({reason}): {mend}")


def _libcuda_loads() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
    except OSError:
        return False
    return True
