"""What is said if pycuda, the driver or the GPU is missing, and if CUDA fails."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lira_engine.cuda.opening import open_driver
from lira_engine.errors import LiraError


def test_missing_pycuda_is_an_error_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.delitem(sys.modules, "pycuda.driver", raising=False)
    with pytest.raises(LiraError, match=r"need pycuda .*pip install 'lira-edge\[pycuda\]'"):
        open_driver()


@pytest.mark.parametrize(
    ("library", "mend"),
    [
        ("libcuda.so.1", r"install NVIDIA's driver .*`nvidia-smi` must name the GPU"),
        ("libcurand.so.10", r"compile pycuda with the installed CUDA: pip install --force-reinstall"),
    ],
)
def test_pycuda_that_does_not_load_is_an_error_with_the_right_fix(
    monkeypatch: pytest.MonkeyPatch, library: str, mend: str
) -> None:
    """Installing it again helps if its CUDA is another one, not if the driver is missing."""
    said = f"{library}: cannot open shared object file: No such file or directory"

    def load(name: str) -> ModuleType:
        raise ImportError(said)

    monkeypatch.setattr("lira_engine.cuda.opening.importlib", SimpleNamespace(import_module=load))
    with pytest.raises(LiraError, match=rf"pycuda is there and does not load \({said}\): .*{mend}") as caught:
        open_driver()
    assert "lira-edge[" not in str(caught.value)


def test_a_missing_gpu_is_a_one_line_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Error(Exception):
        pass

    def init() -> None:
        raise Error("cuInit failed: no CUDA-capable device is detected")

    monkeypatch.setitem(sys.modules, "pycuda", ModuleType("pycuda"))
    driver = ModuleType("pycuda.driver")
    vars(driver).update(Error=Error, init=init)
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    with pytest.raises(LiraError, match=r"CUDA finds no GPU .*no CUDA-capable device .*lira-edge doctor"):
        open_driver()


def test_a_cuda_error_is_one_line(rtx: Any) -> None:
    cuda = sys.modules["pycuda.driver"]
    with (
        pytest.raises(LiraError, match=r"CUDA failed on Stand-in sm_87: cuStreamSynchronize failed: illegal"),
        rtx.driver.current(),
    ):
        raise cuda.Error("cuStreamSynchronize failed:\nillegal address")
    with pytest.raises(rtx.misuse, match="no context is current"):
        rtx.driver.allocate(1)
