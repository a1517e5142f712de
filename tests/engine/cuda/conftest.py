"""A stand-in GPU, with each package that makes CUDA's calls."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lira_engine.cuda.driver import Driver, DriverName
from lira_engine.cuda.opening import open_driver


def _load(name: str) -> ModuleType:
    """Import a file beside this one: pytest does not put test folders on the path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cuda, pycuda, bindings = _load("standin_cuda"), _load("standin_pycuda"), _load("standin_bindings")


class Card:
    """A GPU, and the package for it where `import` finds it: `module`."""

    def __init__(self, name: DriverName, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gpu = cuda.Gpu()
        self.misuse = cuda.Misuse
        self.name = name
        make: Any = pycuda.pycuda_driver if name == "pycuda" else bindings.bindings_driver
        self.module: Any = make(self.gpu)
        path = self.module.__name__
        while path:
            found = self.module if path == self.module.__name__ else ModuleType(path)
            monkeypatch.setitem(sys.modules, path, found)
            path = path.rpartition(".")[0]
        self.driver: Driver = open_driver(name)


@pytest.fixture
def card_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[DriverName], Card]:
    return lambda name: Card(name, monkeypatch)


@pytest.fixture(params=["pycuda", "cuda-bindings"])
def card(request: pytest.FixtureRequest, card_with: Callable[[DriverName], Card]) -> Card:
    """A card with each package in turn."""
    return card_with(request.param)
