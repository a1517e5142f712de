"""`lira-edge build`, `inspect` and `doctor`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `lira-edge export` wrote.")]


def build(
    bundle: BundlePath,
    target: Annotated[str, typer.Option(help="Where the engines will run: cpu.")] = "cpu",
    precision: Annotated[
        str, typer.Option(help="fp32, or the language model's weights in int8 or int4.")
    ] = "fp32",
    block_size: Annotated[int, typer.Option(help="Inputs that share a scale: 32 or 128.")] = 32,
    lm_head_bits: Annotated[int, typer.Option(help="Of the LM head in an int4 build: 4 or 8.")] = 4,
    encoders: Annotated[
        str,
        typer.Option(help="Other stages in an int8 or int4 build: fp32, int8, or auto (int8 where faster)."),
    ] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads for the checks.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Build again what is up to date.")] = False,
) -> None:
    """Build the engines of a bundle for this machine and check them on its check vectors.

    Writes BUNDLE/engines/TARGET-PRECISION/, whole or not at all.
    """
    from lira_engine.build import BuildOptions
    from lira_engine.build import build as build_engines
    from lira_engine.bundle import Bundle
    from lira_engine.engine_folder import read_build

    console = Console(highlight=False)
    opened = Bundle.open(bundle)
    started = time.perf_counter()
    with console.status("") as status:

        def progress(stage: str, phase: str) -> None:
            status.update(f"{stage}: {phase} ({time.perf_counter() - started:.0f} s)")
            if phase == "done":
                console.print(f"{stage:<18}{time.perf_counter() - started:7.1f} s")

        options = BuildOptions(block_size, lm_head_bits, encoders)  # type: ignore[arg-type]
        folder = build_engines(
            opened, target, precision, options, threads=threads, force=force, progress=progress
        )
    record = read_build(folder, "")
    worst = max(error for errors in record.errors.values() for error in errors.values())
    size = sum(entry.bytes for entry in record.files.values())
    console.print(
        f"{folder}: {size / 2**20:.1f} MiB, largest error on the check vectors {worst:.1e}",
        soft_wrap=True,
    )


def inspect(
    path: Annotated[Path, typer.Argument(help="A bundle, an engine folder or a checkpoint folder.")],
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file again.")] = False,
) -> None:
    """Show what a bundle, an engine folder or a checkpoint folder holds."""
    from lira_engine.inspect import describe

    _print_tables(describe(path, verify))


def doctor() -> None:
    """Say what this machine can run, what is missing, and the line that installs it."""
    from lira_engine.doctor import examine

    _print_tables(examine())


def _print_tables(tables: list[tuple[str, list[tuple[str, ...]]]]) -> None:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 200  # for pipes and files: nothing is wrapped that a search might look for
    for title, rows in tables:
        console.print(title, style="bold")
        table = Table(box=None, pad_edge=False, show_header=False)
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()
