"""What the accuracy tests share: lira-nano with engines, and scenes that it was not trained on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

SCENES = 6


@pytest.fixture(scope="session")
def accuracy_bundle(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lira-nano with engines cpu-fp32 and cpu-int4."""
    from lira_engine.build import build

    out = shutil.copytree(nano_bundle, tmp_path_factory.mktemp("nano") / "bundle")
    for precision in ("fp32", "int4"):
        build(out, target="cpu", precision=precision)
    return out


@pytest.fixture(scope="session")
def accuracy_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes in every format that `lira-edge eval` reads."""
    from lira_export.nano.dataset import write_dataset

    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_dataset(folder, seed=4, count=SCENES)
    return folder
