"""What is said if pycuda, the driver or the GPU is missing, and if CUDA fails."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lira_engine.errors import LiraError
from lira_engine.trt.driver import open_driver


@pytest.mark.parametrize(("target", "extra"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "rtx")])
def test_without_pycuda(monkeypatch: pytest.MonkeyPatch, target: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    with pytest.raises(LiraError, match=rf"{target} needs pycuda .*pip install 'lira-edge\[{extra}\]'"):
        open_driver(target)


@pytest.mark.parametrize(
    ("library", "mend"),
    [
        ("libcuda.so.1", r"install NVIDIA's driver .*`nvidia-smi` must name the GPU"),
        ("libcurand.so.10", r"compile pycuda with the CUDA that is here: pip install --force-reinstall"),
    ],
)
def test_pycuda_that_does_not_load(monkeypatch: pytest.MonkeyPatch, library: str, mend: str) -> None:
    """Installing it again helps where its CUDA is another one, not where the driver is missing."""
    said = f"{library}: cannot open shared object file: No such file or directory"

    def load(name: str) -> ModuleType:
        raise ImportError(said)

    monkeypatch.setattr("lira_engine.trt.driver.importlib", SimpleNamespace(import_module=load))
    with pytest.raises(LiraError, match=rf"pycuda is there and does not load \({said}\): .*{mend}") as caught:
        open_driver("tensorrt")
    assert "lira-edge[" not in str(caught.value)


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Error(Exception):
        pass

    def init() -> None:
        raise Error("cuInit failed: no CUDA-capable device is detected")

    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    driver = ModuleType("pycuda.driver")
    vars(driver).update(Error=Error, init=init)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    with pytest.raises(LiraError, match=r"CUDA finds no GPU .*no CUDA-capable device .*lira-edge doctor"):
        open_driver("tensorrt")


def test_what_cuda_complains_about(rtx: Any) -> None:
    cuda = sys.modules["pycuda.driver"]
    with (
        pytest.raises(LiraError, match=r"CUDA failed on Stand-in sm_87: cuStreamSynchronize failed: illegal"),
        rtx.driver.current(),
    ):
        raise cuda.Error("cuStreamSynchronize failed:\nillegal address")
    with pytest.raises(rtx.misuse, match="no context is current"):
        rtx.driver.allocate(1)
