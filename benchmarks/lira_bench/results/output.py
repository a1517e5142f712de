"""The files of `lira-edge bench --all` in its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lira_bench.results import picture, table
from lira_bench.results.result import Results
from lira_bench.speed import output as speed_output
from lira_engine.errors import LiraError
from lira_engine.system.atomic import atomic_write, readable_errors
from lira_engine.system.text import json_text

RESULTS, TABLE, PICTURE = "results.json", "results.md", "results.png"
FILES = (RESULTS, TABLE, PICTURE)
LOGS, AGAIN = "logs", ".again"


def check(folder: Path, engines: Sequence[str], overwrite: bool) -> None:
    """Raise LiraError if `folder` is a file, or holds results and `overwrite` is not set."""
    if folder.exists() and not folder.is_dir():
        raise LiraError(f"{folder} is not a folder: choose another -o")
    if (folder / RESULTS).exists() and not overwrite:
        raise LiraError(f"{folder} holds results already: choose another -o, or add --overwrite")
    for name in engines:
        speed_output.check(folder / name, overwrite)


def begin(folder: Path, engines: Sequence[str]) -> None:
    """Make the folder, and take out of it what tells that it, or an engine of it, was measured."""
    with readable_errors(folder):
        (folder / LOGS).mkdir(parents=True, exist_ok=True)
        (folder / RESULTS).unlink(missing_ok=True)
        for name in engines:
            (folder / name / speed_output.RECORD).unlink(missing_ok=True)
        if (folder / AGAIN).exists():  # of a run that was killed
            shutil.rmtree(folder / AGAIN)


def read_record(folder: Path) -> Mapping[str, Any] | None:
    """Return the bench.json of a folder; None if there is none."""
    try:
        text = (folder / speed_output.RECORD).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    record: Mapping[str, Any] = json.loads(text)
    return record


def write(folder: Path, results: Results) -> None:
    """Write all files, results.json last: a folder that has it is complete."""
    contents = {
        TABLE: table.markdown(results).encode(errors="replace"),
        PICTURE: picture.picture(results),
        RESULTS: json_text(results.to_json()).encode(),
    }
    for name, content in contents.items():
        with atomic_write(folder / name) as file:
            file.write(content)
    with suppress(OSError):  # it holds the words of engines that failed or warned
        (folder / LOGS).rmdir()
