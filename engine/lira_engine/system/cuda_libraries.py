"""Find what ONNX Runtime needs on an NVIDIA GPU: the driver, and the libraries of CUDA and cuDNN.

They are the system's (a toolkit, JetPack, LD_LIBRARY_PATH), or those that `pip install 'lira-edge[cuda]'`
puts into folders named nvidia, where no loader looks. Nothing here runs on a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lira_engine.system.extras import install_line
from lira_engine.system.machine import gpus, jetson

WINDOWS = os.name == "nt"
_DRIVER = "nvcuda.dll" if WINDOWS else "libcuda.so.1"
_MAPS = Path("/proc/self/maps")
_MAJORS = (11, 12, 13, 14)
FIRST_FOR_13 = "1.27"
"""The first onnxruntime-gpu of the package index that is for CUDA 13; 1.21 to 1.26 are for CUDA 12."""


@dataclass(frozen=True)
class CudaLibrary:
    """A library that ONNX Runtime loads on a GPU.

    Attributes:
        name: for people. file: the name by which it is loaded. path: of the loaded file, or its name where
            the system does not tell the path; None if it is missing. version: "" if it is unknown.
        cuda: major version of the CUDA that it was built for; None if it does not say so.
    """

    name: str
    file: str
    path: str | None
    version: str = ""
    cuda: int | None = None


@dataclass(frozen=True)
class CudaHere:
    """What this machine has for ONNX Runtime on a GPU.

    Attributes:
        onnxruntime: version of the package. wanted: major version of the CUDA that it is for; None if it does
            not say so. driver: newest CUDA that NVIDIA's driver runs, such as (13, 0); () if it does not say
            so, None without a driver. libraries: those that are wanted. others: major versions of CUDA that
            are here instead of it.
    """

    onnxruntime: str
    wanted: int | None
    driver: tuple[int, ...] | None
    libraries: tuple[CudaLibrary, ...]
    others: tuple[int, ...] = ()

    def complaint(self) -> str | None:
        """Return in one line what lacks or does not fit, and what mends it; None if nothing does."""
        if self.driver is None:
            return (
                f"NVIDIA's driver is missing ({_DRIVER} does not load): install it; a container sees it if "
                "it was started with NVIDIA's runtime (docker run --gpus all)"
            )
        if self.wanted is None:
            return None
        if self.driver and self.driver[0] < self.wanted:
            return self.old_driver()
        lacking = [f"{one.name} ({one.file})" for one in self.libraries if one.path is None]
        if lacking:
            others = f"; found CUDA {' and '.join(map(str, self.others))} instead" if self.others else ""
            return (
                f"onnxruntime {self.onnxruntime} needs CUDA {self.wanted} and cuDNN 9, missing: "
                f"{', '.join(lacking)}{others}: {library_mend()}"
            )
        for one in self.libraries:
            if one.cuda not in (None, self.wanted):
                return (
                    f"{one.name} {one.version} ({one.path}) is for CUDA {one.cuda}, onnxruntime "
                    f"{self.onnxruntime} for CUDA {self.wanted}: remove it, then {library_mend()}"
                )
        return None

    def old_driver(self) -> str:
        """Return that the driver is too old for this ONNX Runtime, and what mends it."""
        found = f"CUDA {dotted(self.driver)} at most" if self.driver else "an older CUDA only"
        cards = gpus()
        driver = f"NVIDIA's driver {cards[0].driver}" if cards else "NVIDIA's driver"
        wanted = "a newer one" if self.wanted is None else f"CUDA {self.wanted}"
        mend = "update the driver"
        if jetson():
            mend = "take an onnxruntime that is built for this JetPack"
        elif self.wanted == 13:
            mend += f", or take one for CUDA 12: pip install 'onnxruntime-gpu[cuda,cudnn]<{FIRST_FOR_13}'"
        return f"{driver} runs {found}, onnxruntime {self.onnxruntime} is for {wanted}: {mend}"


def library_mend() -> str:
    """Return the command that brings CUDA's libraries."""
    return "sudo apt install nvidia-jetpack" if jetson() else install_line("cuda")


def dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


@cache
def use_cuda_libraries() -> CudaHere:
    """Load the libraries of CUDA that the installed ONNX Runtime needs into this process, before it opens the
    first session on a GPU: the system's, where it has them, else those of NVIDIA's wheels.

    `onnxruntime.preload_dlls` by itself finds wheels only in the folder that onnxruntime lies in, and takes
    them even where the system's work. They may lie in another one (--target, the user's, PYTHONPATH, one
    environment on top of another), so it is given each folder that has what lacks.
    """
    import onnxruntime

    text = str(getattr(onnxruntime, "cuda_version", None) or "").partition(".")[0]
    wanted = int(text) if text.isdigit() else None
    files = {} if wanted is None else _files(wanted)
    here = [_library(name, file) for name, file in files.items()]
    folders = _wheel_folders(one.file for one in here if one.path is None)
    preload: Callable[..., None] | None = getattr(onnxruntime, "preload_dlls", None)  # from 1.21 on
    if preload is not None:
        for folder in folders:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what this folder lacks
                preload(directory=str(folder))
    # A library that the system has stays in use: of two with one name the first that was loaded is taken.
    found = tuple(_library(one.name, one.file) if one.path is None else one for one in here)
    others: tuple[int, ...] = ()
    if any(one.path is None for one in found):
        others = tuple(major for major in _MAJORS if major != wanted and _has_runtime(major))
    return CudaHere(onnxruntime.__version__, wanted, _driver(), found, others)


def _files(major: int) -> dict[str, str]:
    """Return the file of each library that ONNX Runtime for a CUDA loads, by its name for people; those that
    others need come first."""
    names = {"cuBLASLt": ("cublasLt", major), "cuBLAS": ("cublas", major)}
    if not WINDOWS:
        names["cuRAND"] = ("curand", 10)
    if major < 13:  # later builds do without
        names["cuFFT"] = ("cufft", 11)
    names |= {"CUDA runtime": ("cudart", major), "cuDNN": ("cudnn", 9)}
    form = "{}64_{}.dll" if WINDOWS else "lib{}.so.{}"
    return {name: form.format(*parts) for name, parts in names.items()}


def _wheel_folders(files: Iterable[str]) -> list[Path]:
    """Return the folders of NVIDIA's wheels that hold the files, for each file the first on sys.path. A
    package nvidia hides the same package in other folders from `import`, and some wheels are such: each
    folder is looked at."""
    found = (next(_in_wheels(file), None) for file in files)
    return list(dict.fromkeys(path.parent for path in found if path is not None))


def _in_wheels(file: str) -> Iterator[Path]:
    places = ("*/bin", "*/bin/*") if WINDOWS else ("*/lib",)
    for folder in sys.path:
        nvidia = Path(folder or ".") / "nvidia"
        for place in places:
            yield from sorted(nvidia.resolve().glob(f"{place}/{file}"))


def _has_runtime(major: int) -> bool:
    file = _files(major)["CUDA runtime"]
    return _loaded(file) is not None or next(_in_wheels(file), None) is not None


def _loaded(file: str) -> ctypes.CDLL | None:
    """Load a library by its name, as ONNX Runtime does; None if it is missing."""
    try:
        return ctypes.CDLL(file)
    except OSError:
        return None


def _library(name: str, file: str) -> CudaLibrary:
    library = _loaded(file)
    if library is None:
        return CudaLibrary(name, file, None)
    version, cuda = "", None
    with contextlib.suppress(AttributeError):  # a library of another version may lack a function
        if name == "CUDA runtime":
            version = dotted(_parts(_number(library.cudaRuntimeGetVersion)))
        elif name == "cuBLAS":
            version = dotted([_number(library.cublasGetProperty, part) for part in range(3)])
        elif name == "cuDNN":
            number = library.cudnnGetVersion()
            version = dotted((number // 10000, number // 100 % 100, number % 100))
            cuda = library.cudnnGetCudartVersion() // 1000 or None
    return CudaLibrary(name, file, _path_of(file), version, cuda)


def _driver() -> tuple[int, ...] | None:
    library = _loaded(_DRIVER)
    if library is None:
        return None
    with contextlib.suppress(AttributeError):
        number = _number(library.cuDriverGetVersion)
        return _parts(number) if number else ()
    return ()


def _number(function: Callable[..., int], *arguments: int) -> int:
    """Return the number that a function of CUDA writes behind its last argument."""
    number = ctypes.c_int(0)
    function(*arguments, ctypes.byref(number))
    return number.value


def _parts(version: int) -> tuple[int, int]:
    """Return 13020 as (13, 2): CUDA's versions are 1000 times the major one plus 10 times the minor one."""
    return version // 1000, version % 1000 // 10


def _path_of(file: str) -> str:
    """Return the path of a loaded library, or `file` where the system does not tell it."""
    with contextlib.suppress(OSError):
        for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
            path = line.partition("/")[1] + line.partition("/")[2]
            if path.rpartition("/")[2].startswith(file):
                return path
    return file
