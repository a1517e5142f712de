"""The folder of a calibration: one at a time, resumed by the same one only."""

from __future__ import annotations

from pathlib import Path

import pytest

from lira_calib.data.journal import Journal
from lira_calib.data.workfolder import JOURNAL, WorkFolder, work_path
from lira_engine.errors import LiraError

IDENTITY = {"bundle": "a" * 64, "data": {"seed": 0}}


def test_the_same_calibration_goes_on(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe"
    with WorkFolder(recipe, IDENTITY) as work:
        assert not work.resumed and work.path == work_path(recipe)
        work.journal.append({"unit": "a", "harm": 0.5})
        (work.path / "runs").mkdir()
    with WorkFolder(recipe, IDENTITY) as work:
        assert work.resumed and (work.path / "runs").is_dir()
        assert work.journal.records() == [{"unit": "a", "harm": 0.5}]
        work.remove()
    assert not list(tmp_path.iterdir())


def test_the_work_of_another_calibration_is_refused_or_dropped(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe"
    with WorkFolder(recipe, IDENTITY) as work:
        work.journal.append({"unit": "a"})
        (work.path / "runs").mkdir()
    other = {**IDENTITY, "data": {"seed": 1}}
    with pytest.raises(
        LiraError, match=r"stopped calibration with data\.seed 0, this one has 1: .*--overwrite"
    ):
        WorkFolder(recipe, other)
    with WorkFolder(recipe, other, overwrite=True) as work:
        assert not work.resumed and work.journal.records() == []
        assert not (work.path / "runs").exists()


def test_two_calibrations_do_not_share_a_folder(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe"
    with WorkFolder(recipe, IDENTITY), pytest.raises(LiraError, match="being made by another calibration"):
        WorkFolder(recipe, IDENTITY, overwrite=True)
    with WorkFolder(recipe, IDENTITY):
        pass


def test_a_line_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    with Journal(path) as journal:
        journal.append({"n": 1})
        journal.append({"n": 2})
    path.write_bytes(path.read_bytes()[:-3])
    with Journal(path) as journal:
        assert journal.records() == [{"n": 1}]
        journal.append({"n": 3})
    assert path.read_text() == '{"n": 1}\n{"n": 3}\n'
    path.write_text("[]\n")
    with pytest.raises(LiraError, match=r"journal\.jsonl:1 is damaged: start anew with --overwrite"):
        Journal(path)


def test_a_damaged_identity_is_not_taken_for_the_same(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe"
    with WorkFolder(recipe, IDENTITY) as work:
        folder = work.path
    (folder / "identity.json").write_text("{")
    with pytest.raises(LiraError, match="holds a stopped calibration with"):
        WorkFolder(recipe, IDENTITY)
    with WorkFolder(recipe, IDENTITY, overwrite=True):
        pass
