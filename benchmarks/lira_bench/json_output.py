"""The option `--json`: the figures that a script wants, as one line of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

STDOUT = Path("-")

JsonOption = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="Write the figures here; -: print them as the last line."),
]


def check_json(path: Path | None) -> None:
    """Raise LiraError for a folder, before the work whose figures would be lost."""
    from lira_engine.errors import LiraError

    if path is not None and path.is_dir():
        raise LiraError(f"--json {path} is a folder, expected a file, or - for the standard output")


def write_json(console: Console, path: Path, figures: object) -> None:
    """Print `figures` as one line on the standard output if `path` is `-`, else replace the file `path`.

    Call it last: no other output may follow the line. It is ASCII, and strict JSON (ValueError for a nan).
    """
    from lira_engine.system.atomic import atomic_write
    from lira_engine.system.terminal import write

    line = json.dumps(figures, separators=(",", ":"), allow_nan=False)
    if path == STDOUT:
        write(console, f"{line}\n")
        return
    with atomic_write(path) as file:
        file.write(f"{line}\n".encode())
    console.print(f"wrote {path}", soft_wrap=True)
