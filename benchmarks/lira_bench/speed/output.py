"""Write the files of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lira_bench.speed import pictures, report, trace
from lira_bench.speed.measure import Run
from lira_engine.errors import LiraError
from lira_engine.system.atomic import atomic_write
from lira_engine.system.text import json_text

RECORD = "bench.json"
OTHERS = ("bench.md", "stages.png", "timeline.png", "trace.json")


def check(folder: Path, overwrite: bool) -> None:
    """Raise LiraError if `folder` is a file, or holds results and `overwrite` is not set."""
    if folder.exists() and not folder.is_dir():
        raise LiraError(f"{folder} is not a folder: choose another -o")
    if (folder / RECORD).exists() and not overwrite:
        raise LiraError(f"{folder} holds a benchmark already: choose another -o, or add --overwrite")


def write(folder: Path, record: Mapping[str, Any], run: Run) -> None:
    """Write all files, the record last: a folder with a record is complete."""
    (folder / RECORD).unlink(missing_ok=True)
    contents = {
        "bench.md": report.markdown(record).encode(errors="replace"),
        "stages.png": pictures.bars(record),
        "timeline.png": pictures.timeline(record, run),
        "trace.json": trace.chrome_trace(run, report.heading(record)).encode(),
        RECORD: json_text(record).encode(),
    }
    for name, content in contents.items():
        with atomic_write(folder / name) as file:
            file.write(content)
