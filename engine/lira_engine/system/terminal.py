"""Print on the terminal. Everything that commands print goes through here (tests/test_house.py).

Paths, names and answers appear as they are: rich would interpret [markup] and emoji codes in them, and colour
numbers, a terminal would obey escape sequences. Pipes and files get the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from lira_engine.system.text import shown


class _Plain(Console):
    """Shows control characters of what it prints; its own, such as colours, it sends."""

    def render_str(self, text: str, *arguments: Any, **options: Any) -> Text:
        return super().render_str(shown(text), *arguments, **options)  # before widths are measured

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(shown(segment.text), segment.style)


def plain_console(stderr: bool = False) -> Console:
    """Return a console that prints lines, tables and titles as they are, control characters escaped."""
    return _Plain(stderr=stderr, highlight=False, markup=False, emoji=False)


def write(console: Console, text: str) -> None:
    """Print a piece of text at once, without a line break."""
    console.file.write(shown(text))
    console.file.flush()


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
