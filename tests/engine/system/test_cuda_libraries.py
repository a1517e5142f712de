"""CUDA's libraries are found where they lie, and what lacks is named with the line that mends it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lira_engine.system import cuda_libraries
from lira_engine.system.cuda_libraries import CudaHere, CudaLibrary, use_cuda_libraries
from lira_engine.system.machine import Gpu, Jetson

CUDA_13 = ("libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudart.so.13", "libcudnn.so.9")
CUDA_12 = ("libcublasLt.so.12", "libcublas.so.12", "libcurand.so.10", "libcufft.so.11", "libcudart.so.12")
DRIVER = "libcuda.so.1"
MEND = "pip install 'lira-edge[cuda]'"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the libraries have other names")


class Machine:
    """A machine whose loader finds `system`; onnxruntime's function adds what lies in a folder."""

    def __init__(self, cuda_version: str) -> None:
        self.system: dict[str, dict[str, Callable[..., int]]] = {}
        self.given: list[Path] = []
        self.onnxruntime = SimpleNamespace(
            __version__="1.31.1", cuda_version=cuda_version, preload_dlls=self.preload
        )

    def has(self, *files: str, **functions: Callable[..., int]) -> None:
        self.system |= dict.fromkeys(files, functions)

    def preload(self, directory: str) -> None:
        self.given.append(Path(directory))
        self.has(*(path.name for path in Path(directory).iterdir()))
        print("Failed to load libcublasLt.so.13: no such file")

    def load(self, file: str) -> Any:
        if file not in self.system:
            raise OSError(f"{file}: cannot open shared object file")
        return SimpleNamespace(**self.system[file])


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Machine]]:
    """machine(cuda_version): one without any CUDA, with an onnxruntime for it."""

    def new(cuda_version: str = "13.0") -> Machine:
        found = Machine(cuda_version)
        monkeypatch.setitem(sys.modules, "onnxruntime", found.onnxruntime)
        monkeypatch.setattr(cuda_libraries.ctypes, "CDLL", found.load)
        monkeypatch.setattr(cuda_libraries, "jetson", lambda: None)
        monkeypatch.setattr(cuda_libraries, "gpus", list)
        return found

    use_cuda_libraries.cache_clear()
    yield new
    use_cuda_libraries.cache_clear()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """site(name, {folder below nvidia: files}): one more folder of packages, the last of sys.path."""

    def add(name: str, wheels: dict[str, tuple[str, ...]]) -> Path:
        nvidia = tmp_path / name / "nvidia"
        for folder, files in wheels.items():
            (nvidia / folder).mkdir(parents=True)
            for file in files:
                (nvidia / folder / file).touch()
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / name)])
        return nvidia

    return add


def writes(number: int) -> Callable[..., int]:
    """Return a function that writes a number behind its last argument, as CUDA's do."""

    def call(*arguments: Any) -> int:
        arguments[-1]._obj.value = number
        return 0

    return call


def test_the_systems_libraries_are_taken_as_they_are(machine: Callable[..., Machine], site: Any) -> None:
    site("wheels", {"cu13/lib": CUDA_13[:4], "cudnn/lib": CUDA_13[4:]})
    here = machine()
    here.has(*CUDA_13, DRIVER)
    found = use_cuda_libraries()
    assert here.given == [] and found.complaint() is None
    assert [one.file for one in found.libraries] == list(CUDA_13)


def test_wheels_are_found_in_any_folder(
    machine: Callable[..., Machine], site: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two folders of packages, one of which hides the other from `import nvidia`."""
    first, second = site("one", {"cu13/lib": CUDA_13[:4]}), site("two", {"cudnn/lib": CUDA_13[4:]})
    (first / "__init__.py").touch()
    here = machine()
    here.has(DRIVER)
    found = use_cuda_libraries()
    assert here.given == [first / "cu13/lib", second / "cudnn/lib"]
    assert found.complaint() is None
    assert capsys.readouterr().out == ""  # an answer may go there


def test_only_what_the_system_lacks_comes_from_wheels(machine: Callable[..., Machine], site: Any) -> None:
    nvidia = site("wheels", {"cu13/lib": CUDA_13[:4], "cudnn/lib": CUDA_13[4:]})
    here = machine()
    here.has(*CUDA_13[:4], DRIVER)
    assert use_cuda_libraries().complaint() is None
    assert here.given == [nvidia / "cudnn/lib"]


def test_the_wheels_of_cuda_12_have_a_folder_each(machine: Callable[..., Machine], site: Any) -> None:
    folders = ("cublas", "curand", "cufft", "cuda_runtime", "cudnn")
    files = (CUDA_12[:2], CUDA_12[2:3], CUDA_12[3:4], CUDA_12[4:], ("libcudnn.so.9",))
    nvidia = site("wheels", {f"{name}/lib": group for name, group in zip(folders, files, strict=True)})
    here = machine("12.8")
    here.has(DRIVER)
    assert use_cuda_libraries().complaint() is None
    assert here.given == [nvidia / name / "lib" for name in folders]


def test_what_lacks_is_named_with_the_line_that_mends_it(machine: Callable[..., Machine], site: Any) -> None:
    site("wheels", {"cuda_runtime/lib": ("libcudart.so.12",)})
    here = machine()
    here.has(*CUDA_13[:4], DRIVER)
    assert use_cuda_libraries().complaint() == (
        "onnxruntime 1.31.1 needs CUDA 13 and cuDNN 9, missing: cuDNN (libcudnn.so.9); found CUDA 12 instead"
        f": {MEND}"
    )


def test_versions_and_the_driver_are_read(machine: Callable[..., Machine]) -> None:
    here = machine()
    here.has(*CUDA_13)
    here.has("libcudart.so.13", cudaRuntimeGetVersion=writes(13020))
    here.has("libcublas.so.13", cublasGetProperty=lambda part, out: writes((13, 2, 1)[part])(out))
    here.has("libcudnn.so.9", cudnnGetVersion=lambda: 91900, cudnnGetCudartVersion=lambda: 12080)
    here.has(DRIVER, cuDriverGetVersion=writes(13010))
    found = use_cuda_libraries()
    versions = {one.name: one.version for one in found.libraries}
    assert versions == {
        "cuBLASLt": "", "cuBLAS": "13.2.1", "cuRAND": "", "CUDA runtime": "13.2", "cuDNN": "9.19.0",
    }  # fmt: skip
    assert found.driver == (13, 1)
    assert found.complaint() == (
        "cuDNN 9.19.0 (libcudnn.so.9) is for CUDA 12, onnxruntime 1.31.1 for CUDA 13: remove it, then " + MEND
    )


def test_an_onnxruntime_that_names_no_cuda_is_left_alone(machine: Callable[..., Machine], site: Any) -> None:
    """Such as builds for JetPack."""
    site("wheels", {"cu13/lib": CUDA_13})
    here = machine("")
    here.has(DRIVER)
    found = use_cuda_libraries()
    assert (here.given, found.wanted, found.libraries, found.complaint()) == ([], None, (), None)


def test_a_missing_or_old_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def here(driver: tuple[int, ...] | None, wanted: int | None = 13) -> CudaHere:
        return CudaHere(
            "1.31.1", wanted, driver, (CudaLibrary("cuDNN", "libcudnn.so.9", "/x", "9.1.0", wanted),)
        )

    monkeypatch.setattr(cuda_libraries, "jetson", lambda: None)
    monkeypatch.setattr(cuda_libraries, "gpus", lambda: [Gpu("RTX 4090", "24564 MiB", "550.54")])
    assert "NVIDIA's driver is missing (libcuda.so.1 does not load)" in str(here(None).complaint())
    assert here((12, 4)).complaint() == (
        "NVIDIA's driver 550.54 runs CUDA 12.4 at most, onnxruntime 1.31.1 is for CUDA 13: update the "
        "driver, "
        "or take one for CUDA 12: pip install 'onnxruntime-gpu[cuda,cudnn]<1.27'"
    )
    assert str(here((11, 8), 12).complaint()).endswith("is for CUDA 12: update the driver")
    for fits in (here((13, 0)), here((14, 1)), here(()), here((12, 4), 12), here((12, 4), None)):
        assert fits.complaint() is None
    monkeypatch.setattr(cuda_libraries, "jetson", lambda: Jetson("Orin", "36.4", "6.2"))
    assert str(here((12, 6)).complaint()).endswith("take an onnxruntime that is built for this JetPack")


def test_the_path_of_a_loaded_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = tmp_path / "maps"
    maps.write_text(
        "7f00-7f01 r-xp 00000000 fe:00 1  /usr/lib/libcudnn_ops.so.9\n"
        "7f00-7f01 r-xp 00000000 fe:00 1  /a folder/libcudnn.so.9.19.0\n7f02-7f03 rw-p 00000000 00:00 0\n"
    )
    monkeypatch.setattr(cuda_libraries, "_MAPS", maps)
    assert cuda_libraries._path_of("libcudnn.so.9") == "/a folder/libcudnn.so.9.19.0"
    assert cuda_libraries._path_of("libcudart.so.13") == "libcudart.so.13"


def test_the_cpu_loads_no_library_of_cuda(tmp_path: Path) -> None:
    """Neither an import of the runtime nor a session of target cpu."""
    code = """
import ctypes, sys
asked = []
class Asked(ctypes.CDLL):
    def __init__(self, name, *rest, **options):
        asked.append(str(name))
        super().__init__(name, *rest, **options)
ctypes.CDLL = Asked
import lira_runtime
import onnx
from onnx import helper
from lira_engine.ort.session import open_session
graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g",
    [helper.make_tensor_value_info("x", 1, [1])], [helper.make_tensor_value_info("y", 1, [1])])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), sys.argv[1])
open_session(sys.argv[1], threads=1)
print([name for name in asked if "cu" in name.rpartition("/")[2]])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "g.onnx")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
