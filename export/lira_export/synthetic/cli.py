"""`lira-edge synthesize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import DownloadColumn, TimeRemainingColumn

from lira_engine.command_line import command_text
from lira_engine.errors import quoted
from lira_engine.system.terminal import plain_console, progress_bar
from lira_engine.system.text import check_path

from .sizes import size_names


def synthesize(
    size: Annotated[str, typer.Argument(metavar="SIZE", help=f"One of {', '.join(size_names())}.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.")],
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    outliers: Annotated[
        bool, typer.Option("--outliers", help="Plant outliers of trained models, to test calibration.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a synthetic checkpoint.")] = False,
) -> None:
    """Write a checkpoint of random weights in true shapes, to measure a device without trained weights.

    Its answers are meaningless. Speed and memory are those of trained weights. With --outliers, a few
    channels of the tile encoder and the language model are 20 to 100 times the others, and two are thousands
    of times the median at the first token, as in trained models: plain 8-bit engines fail on it.
    """
    console = plain_console()
    check_path(output)
    with progress_bar(console, DownloadColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("torch: loading", total=None)
        from ..memory import check_memory

        check_memory()
        from .synthesize import WARNING
        from .synthesize import synthesize as write

        def progress(name: str, written: int, total: int) -> None:
            bar.update(task, description=name[-48:], completed=written, total=total)

        write(size, output, seed=seed, outliers=outliers, overwrite=overwrite, progress=progress)
    console.print(WARNING, style="bold yellow")
    size_on_disk = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    given = {"seed": seed or None, "outliers": outliers}
    again = command_text("synthesize", size, output=output, **given, overwrite=True)
    for line in (
        f"{output}: {size_on_disk / 2**30:.2f} GiB; next: lira-edge export {quoted(output)} -o BUNDLE",
        f"reproduce: {again}",
    ):
        console.print(line, soft_wrap=True)
