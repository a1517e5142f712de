"""`--json`: one line of JSON, at the end of the output or in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lira_bench.json_output import STDOUT, check_json, write_json
from lira_engine.errors import LiraError
from lira_engine.system.terminal import plain_console

FIGURES = {"rate": 1.5, "name": "grün \udc80\u2028", "none": None}


def test_a_dash_prints_one_ascii_line(capsys: pytest.CaptureFixture[str]) -> None:
    write_json(plain_console(), STDOUT, FIGURES)
    printed = capsys.readouterr().out
    assert printed.isascii() and printed.splitlines() == [printed.rstrip("\n")]
    assert json.loads(printed) == FIGURES and ", " not in printed


def test_a_file_is_replaced_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "new" / "figures.json"
    for figures in ({"old": 1}, FIGURES):
        write_json(plain_console(), path, figures)
    assert json.loads(path.read_text()) == FIGURES
    assert capsys.readouterr().out.count(f"wrote {path}") == 2
    assert [file.name for file in path.parent.iterdir()] == ["figures.json"]


def test_a_nan_is_refused_and_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(plain_console(), path, {"rate": float("nan")})
    assert path.read_text() == "{}"


def test_a_folder_is_refused(tmp_path: Path) -> None:
    check_json(None)
    check_json(STDOUT)
    with pytest.raises(LiraError, match="is a folder, expected a file, or -"):
        check_json(tmp_path)
