"""Stand-ins for NVIDIA's management library and for jetson-stats."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _load(name: str) -> ModuleType:
    """Import a file beside this one: pytest does not put test folders on the path."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


standin_nvml = _load("standin_nvml")


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A card behind the real nvidia-ml-py: `standin_nvml.Card`."""
    pynvml = pytest.importorskip("pynvml")
    card = standin_nvml.Card()
    monkeypatch.setattr(pynvml, "nvmlLib", standin_nvml.library(card))
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    return card
