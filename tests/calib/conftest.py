"""Shared fixtures: lira-nano with engines, annotated scenes that it never saw, and recorded sequences."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lira_calib.data.items import Data
    from lira_calib.data.sequences import Sequence
    from lira_engine.bundle.bundle import Bundle

SCENES = 8


@pytest.fixture(scope="session")
def calib_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes in all forms of `lira-edge eval`, pictures in `images`; to be read only."""
    from lira_nano.dataset import write_dataset

    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    write_dataset(folder, seed=3, count=SCENES)
    return folder


@pytest.fixture(scope="session")
def calib_bundle(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """lira-nano with engines cpu-fp32."""
    from lira_engine.build import build
    from lira_engine.bundle.bundle import Bundle

    out = shutil.copytree(nano_bundle, tmp_path_factory.mktemp("nano") / "bundle")
    build(out, target="cpu", precision="fp32")
    return Bundle.open(out)


@pytest.fixture(scope="session")
def calib_data(calib_scenes: Path) -> Data:
    """Five items to calibrate on and three held out, of all groups."""
    from lira_calib.data.items import read_items

    return read_items(calib_scenes / "images", [calib_scenes], count=5, held_out=3, seed=0)


@pytest.fixture(scope="session")
def calib_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of `recorded`."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="session")
def recorded(calib_bundle: Bundle, calib_data: Data, calib_work: Path) -> list[Sequence]:
    """The sequences of `calib_data`: those to calibrate on, then those held out."""
    from lira_calib.data.record import record

    calibration, held_out = record(calib_bundle, calib_data, calib_work, threads=1)
    return [*calibration, *held_out]
