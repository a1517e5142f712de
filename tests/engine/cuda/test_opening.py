"""Which package makes CUDA's calls, and what is said without it, a driver or a GPU, and if CUDA fails."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from lira_engine.cuda import opening
from lira_engine.cuda.driver import check_driver
from lira_engine.cuda.opening import missing_package, open_driver
from lira_engine.errors import DeviceFailed, LiraError

BOTH = ("pycuda", "cuda-bindings")
MODULES = {"pycuda": ("pycuda", "pycuda.driver"), "cuda-bindings": ("cuda.bindings", "cuda.bindings.driver")}


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make packages look as if they were not installed."""

    def hide(*names: str) -> None:
        for name in names:
            package, module = MODULES[name]
            monkeypatch.setitem(sys.modules, package, None)
            monkeypatch.delitem(sys.modules, module, raising=False)

    return hide


@pytest.fixture
def libcuda(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda there: monkeypatch.setattr(opening, "_libcuda_loads", lambda: there)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("version, told", [("2025.1", "2025.1"), (None, "of the system")])
def test_a_driver_says_which_package_it_is(
    card_with: Any, monkeypatch: pytest.MonkeyPatch, name: str, version: str | None, told: str
) -> None:
    """JetPack's pycuda may have no record of its installation."""
    monkeypatch.setattr(opening, "installed", lambda package: version)
    assert card_with(name).driver.name == f"{name} {told}"


def test_pycuda_is_taken_where_it_is_installed(card_with: Any, absent: Any) -> None:
    bindings = card_with("cuda-bindings").driver
    pycuda = card_with("pycuda").driver
    assert open_driver() is open_driver("pycuda") is pycuda
    assert open_driver("cuda-bindings") is bindings
    absent("pycuda")
    assert open_driver() is bindings


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("auto", r"CUDA's calls need pycuda or cuda-bindings: pip install cuda-bindings$"),
        ("pycuda", r"CUDA's calls need pycuda: pip install 'lira-edge\[pycuda\]'$"),
        ("cuda-bindings", r"CUDA's calls need cuda-bindings: pip install cuda-bindings$"),
    ],
)
def test_a_missing_package_is_an_error_with_the_install_command(
    absent: Any, choice: Any, message: str
) -> None:
    absent(*BOTH)
    with pytest.raises(LiraError, match=message):
        open_driver(choice)


def test_a_missing_package_is_told_before_anything_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"cuda-bindings": "13.0.0"}
    monkeypatch.setattr(opening, "installed", there.get)
    assert missing_package() is missing_package("cuda-bindings") is None
    assert missing_package("pycuda") == "CUDA's calls need pycuda: pip install 'lira-edge[pycuda]'"
    there.clear()
    assert missing_package() == "CUDA's calls need pycuda or cuda-bindings: pip install cuda-bindings"


@pytest.mark.parametrize(
    ("name", "error", "there", "mend"),
    [
        ("pycuda", ImportError("libcuda.so.1: cannot open"), False, r"install NVIDIA's driver .*nvidia-smi"),
        ("pycuda", ImportError("undefined symbol: cuX"), True, r"compile it .*--force-reinstall .*pycuda"),
        ("pycuda", ModuleNotFoundError("No module named 'pytools'", name="pytools"), True, "compile it"),
        (
            "cuda-bindings",
            ImportError("undefined symbol"),
            True,
            "pip install --force-reinstall cuda-bindings",
        ),
        ("cuda-bindings", RuntimeError("dlopen"), False, r"install NVIDIA's driver .*nvidia-smi"),
        ("cuda-bindings", RuntimeError("cuX not found"), True, "too old for it: update it to 525 or newer"),
    ],
)
def test_a_package_that_does_not_load_is_an_error_with_the_right_fix(
    monkeypatch: pytest.MonkeyPatch, libcuda: Any, name: Any, error: Exception, there: bool, mend: str
) -> None:
    """No silent fallback to the other package: it was asked for, or installed on purpose."""

    def load(path: str) -> Any:
        raise error

    libcuda(there)
    monkeypatch.setattr(opening.importlib, "import_module", load)
    with pytest.raises(LiraError, match=rf"^{name} is there and does not load \({error}\): .*{mend}"):
        open_driver(name)


def test_libcuda_is_loaded_at_the_first_call_of_cuda_bindings(
    card_with: Any, libcuda: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = card_with("cuda-bindings")
    opening._opened.cache_clear()

    def fails(flags: int) -> Any:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(card.module, "cuInit", fails)
    libcuda(False)
    with pytest.raises(LiraError, match=r"does not load \(Failed to dlopen libcuda.so.1\): install NVIDIA's"):
        open_driver("cuda-bindings")


def test_a_missing_gpu_is_a_one_line_error(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opening._opened.cache_clear()

    def pycuda_init() -> None:
        raise card.module.Error("cuInit failed: no CUDA-capable\ndevice")

    def cuInit(Flags: int) -> tuple[Any, ...]:
        return (card.module.CUresult.CUDA_ERROR_NO_DEVICE,)

    if card.name == "pycuda":
        monkeypatch.setattr(card.module, "init", pycuda_init)
        reason = "no CUDA-capable device"
    else:
        monkeypatch.setattr(card.module, "cuInit", cuInit)
        reason = "CUDA_ERROR_NO_DEVICE"
    with pytest.raises(
        DeviceFailed,
        match=rf"CUDA finds no GPU to work with \(cuInit failed: {reason}\): see `lira-edge doctor",
    ):
        open_driver(card.name)


def test_a_cuda_error_is_one_line(card: Any) -> None:
    """In whatever call it shows: most of them fail for work that was enqueued before."""
    with (
        pytest.raises(
            DeviceFailed,
            match=r"^CUDA failed on Stand-in sm_87: cuStreamSynchronize failed: (?i:.*illegal.*); nothing",
        ),
        card.driver.current(),
    ):
        stream = card.driver.stream()
        if card.name == "pycuda":
            raise card.module.Error("cuStreamSynchronize failed:\nillegal address")
        card.module.fails = card.module.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
        stream.synchronize()
    assert not card.gpu.is_current


def test_an_unknown_driver_is_refused_with_the_choices() -> None:
    assert check_driver("cuda-bindings") == "cuda-bindings"
    with pytest.raises(LiraError, match="driver is 'cupy'; expected auto, pycuda or cuda-bindings"):
        check_driver("cupy")
