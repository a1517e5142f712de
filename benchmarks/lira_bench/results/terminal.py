"""The results of all engines on the terminal, and what a file for others holds."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from lira_bench.results import output, table
from lira_bench.results.result import Results
from lira_bench.speed.report import AUTHORS
from lira_bench.speed.terminal import rich_table


def print_results(console: Console, results: Results, folder: Path) -> None:
    """Print the table, and the names of the files in `folder`."""
    console.print(table.heading(results), style="bold")
    for line in table.remarks(results):
        console.print(line, style="yellow", soft_wrap=True)
    console.print(table.setting(results), style="dim", soft_wrap=True)
    console.print()
    if not console.is_terminal:
        console.width = 200  # searches find whole lines
    console.print(rich_table(table.table(results)))
    for line in [*table.notes(results), *table.reasons(results)]:
        console.print(line, soft_wrap=True)
    console.print(f"\n({AUTHORS})", style="dim", soft_wrap=True)
    others = f"{output.TABLE}, {output.PICTURE}, and a folder for each engine"
    console.print(f"wrote {folder / output.RESULTS}, {others}", soft_wrap=True)


def print_submission(console: Console, path: Path, results: Results) -> None:
    """Print what a file for others holds."""
    pictures, bundle = results.asked.pictures, results.bundle
    without = [f"{one.name} ({one.status})" for one in results.engines if one.figures is None]
    about = f"{pictures.name}, {pictures.width} x {pictures.height}"
    console.print(f"wrote {path}, for others (docs/results says where it goes). It holds", soft_wrap=True)
    for what, told in (
        ("date", results.date),
        ("machine, versions", f"{results.machine.system}; {table.setting(results)}"),
        ("bundle", f"{bundle.name}, SHA-256 of its lira.json {bundle.manifest_sha256[:12]}..."),
        ("images", about if pictures.count == 1 else f"{pictures.count}, the first: {about}"),
        ("figures of", ", ".join(one.name for one, _ in results.measured)),
        *([("without figures", ", ".join(without))] if without else []),
    ):
        console.print(f"  {what}: {told}", soft_wrap=True)
    console.print("and no host name, user name, path, serial number or address.", soft_wrap=True)
