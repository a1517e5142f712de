"""Paths and names appear unchanged on the terminal."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lira_engine.main import main
from lira_engine.system.terminal import plain_console, progress_bar, status, write

NAME = "a :car: [red]b[/red] [1, 2] 5.0"


@pytest.fixture
def terminal() -> Console:
    """A plain console that treats its file as a terminal."""
    console = plain_console()
    console.file = io.StringIO()
    console._force_terminal = console.is_interactive = True
    console.width = 120
    return console


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def wait_for(console: Console, text: str) -> None:
    """Wait until the drawing thread has written `text`."""
    end = time.monotonic() + 10
    while text not in written(console):
        assert time.monotonic() < end, written(console)
        time.sleep(0.01)


def test_lines_tables_and_titles_are_printed_unchanged(terminal: Console) -> None:
    terminal.print(NAME)
    table = Table(title=NAME, show_header=False)
    table.add_row(NAME)
    terminal.print(table)
    assert written(terminal).count(NAME) == 3


def test_no_way_of_printing_sends_a_control_character(terminal: Console) -> None:
    evil, seen = "\x1b]0;owned\x9b31m\x7f", r"\x1b]0;owned\x9b31m\x7f"
    terminal.print(evil, style="bold")
    terminal.print(Text(evil) + Text(evil, style="red"))
    write(terminal, evil)
    table = Table(evil, title=evil)
    table.add_row(evil)
    terminal.print(table)
    with status(terminal, evil) as show:
        wait_for(terminal, f" {seen}")
        show(f"then {evil}")
        wait_for(terminal, f"then {seen}")
    with progress_bar(terminal) as bar:
        bar.add_task(f"bar {evil}", total=1)
        bar.refresh()
    assert rf"bar {seen[:8]}" in written(terminal)  # rich cuts it to the width of the text before
    assert written(terminal).count(seen) >= 9 and not re.search("\x1b]|\x9b|\x7f", written(terminal))


def test_a_status_shows_its_text_on_terminals_only(terminal: Console) -> None:
    with status(terminal, NAME) as show:
        wait_for(terminal, NAME)
        show(f"then {NAME}")
        wait_for(terminal, f"then {NAME}")
    plain = io.StringIO()
    console = plain_console()
    console.file = plain
    with status(console, NAME):
        pass
    assert plain.getvalue() == ""


def test_a_progress_bar_shows_its_description_unchanged(terminal: Console) -> None:
    with progress_bar(terminal) as bar:
        bar.add_task(NAME, total=2)
        bar.refresh()
    assert NAME in written(terminal)


def test_inspect_prints_an_odd_name_unchanged(bundle_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = bundle_path.rename(bundle_path.with_name(":car: [red]b"))
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(odd)])
    printed = capsys.readouterr()
    assert caught.value.code == 0 and printed.err == "" and odd.name in printed.out
