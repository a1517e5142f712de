"""The installed TensorRT: its version, its dialect, and what is said if it is missing."""

from __future__ import annotations

import sys

import pytest

from lira_engine import LiraError
from lira_engine.trt.flavour import dialect_of, load_flavour, parse_version


def test_the_version_decides_the_dialect() -> None:
    assert parse_version("10.3.0.post1") == (10, 3, 0) and parse_version("1.7.1.20") == (1, 7, 1, 20)
    dialects = [dialect_of("tensorrt", version) for version in ((10, 3), (10, 14), (10, 15), (11, 0))]
    assert dialects == ["decomposed", "decomposed", "cache_update", "cache_update"]
    assert dialect_of("tensorrt-rtx", (1, 7, 1)) == "cache_update"


def test_a_missing_package_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        LiraError, match=r"needs tensorrt .*on JetPack `sudo apt install.*pip install 'lira-edge\[tensorrt\]'"
    ):
        load_flavour("tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(LiraError, match=r"pip install 'lira-edge\[rtx\]'"):
        load_flavour("tensorrt-rtx")
