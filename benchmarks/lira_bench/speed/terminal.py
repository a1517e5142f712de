"""A benchmark's record on the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from lira_bench.speed import output, report


def print_record(console: Console, record: report.Record, folder: Path) -> None:
    """Print the tables of the record, and the names of the files in `folder`."""
    console.print(report.heading(record), style="bold")
    for line in report.remarks(record):
        console.print(line, style="yellow", soft_wrap=True)
    console.print(report.setting(record), style="dim", soft_wrap=True)
    tables = [report.rate_table(record), report.figure_table(record), report.stage_table(record)]
    if "ablation" in record:
        tables.append(report.ablation_table(record))
    for each in tables:
        console.print()
        console.print(rich_table(each))
    if "peers" in record:
        console.print()
        console.print(record["peers"]["table"])
    console.print(f"\n({report.AUTHORS})", style="dim", soft_wrap=True)
    console.print(f"wrote {folder / output.RECORD}, {', '.join(output.OTHERS)}", soft_wrap=True)


def rich_table(table: report.Table) -> RichTable:
    """Return the table for a terminal; all columns but the first are aligned to the right."""
    columns, rows = table
    shown = RichTable(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        shown.add_column(column, justify="right" if number else "left")
    for row in rows:
        shown.add_row(*row)
    return shown
