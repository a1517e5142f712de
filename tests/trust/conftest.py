"""Shared by the tests of trust: lira-nano with engines."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def trusted_nano(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lira-nano with engines cpu-fp32. To be read only."""
    from lira_engine.build import build

    out = shutil.copytree(nano_bundle, tmp_path_factory.mktemp("nano") / "bundle")
    build(out, target="cpu", precision="fp32")
    return out
