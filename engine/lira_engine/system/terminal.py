"""Print on the terminal. Paths, names and answers appear unchanged: rich would interpret [markup] and emoji
codes in them, and colour numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text


def plain_console(stderr: bool = False) -> Console:
    """Return a console that prints lines, tables and titles unchanged."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def warn(text: str) -> None:
    """Print a line on standard error; nothing for an empty text."""
    if text:
        plain_console(stderr=True).print(f"warning: {text}", soft_wrap=True)


@contextmanager
def status(console: Console, text: str = "") -> Iterator[Callable[[str], None]]:
    """Show a spinner with a text while the block runs; yield a function that changes the text."""
    with console.status(Text(text)) as shown:
        yield lambda text: shown.update(Text(text))


def print_tables(tables: Sequence[tuple[str, Sequence[tuple[str, ...]]]]) -> None:
    """Print (title, rows) tables. Pipes and files get 200 columns, so that searches find whole lines."""
    console = plain_console()
    if not console.is_terminal:
        console.width = 200
    for title, rows in tables:
        console.print(title, style="bold")
        table = Table(box=None, pad_edge=False, show_header=False)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()


def progress_bar(console: Console, *columns: ProgressColumn) -> Progress:
    """Return a bar with description and `columns`, removed at the end. Shown on terminals only."""
    description = TextColumn("{task.description}", markup=False)
    return Progress(
        description, BarColumn(), *columns, console=console, transient=True, disable=not console.is_terminal
    )
