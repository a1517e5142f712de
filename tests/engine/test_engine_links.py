"""An `engines` folder that leads out of its bundle is neither loaded nor replaced."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lira_engine import LiraError, open_engines
from lira_engine.build import build
from lira_engine.inspect import describe


@pytest.fixture
def built(bundle_path: Path) -> Path:
    build(bundle_path, threads=1)
    return bundle_path


def state(bundle: Path) -> str:
    ((_, said),) = dict(describe(bundle))["engines"]
    return said


@pytest.mark.parametrize("which", ["engines", "engines/cpu-fp32"])
def test_a_link_out_of_the_bundle_is_neither_loaded_nor_replaced(
    built: Path, tmp_path: Path, which: str
) -> None:
    outside = tmp_path / "outside"
    (built / which).rename(outside)
    (built / which).symlink_to(outside)
    files = sorted((path, path.stat().st_mtime_ns, path.stat().st_ino) for path in outside.rglob("*"))
    for act in (lambda: open_engines(built, threads=1), lambda: build(built, threads=1, force=True)):
        with pytest.raises(LiraError, match=r"is a link that leads out of the folder, copy"):
            act()
    assert "is a link that leads out of the folder" in state(built)
    assert (built / which).is_symlink()
    assert files == sorted((path, path.stat().st_mtime_ns, path.stat().st_ino) for path in outside.rglob("*"))


def test_a_link_inside_the_bundle_is_followed(built: Path) -> None:
    (built / "engines").rename(built / "kept")
    os.symlink("kept", built / "engines")
    with open_engines(built, threads=1):
        assert state(built) == "ready"
