"""`lira-edge export`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT_DIR", help="Folder with LIRA's five checkpoint files.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="BUNDLE", help="Folder to write.")],
    context_length: Annotated[
        int | None, typer.Option(min=1, help="Slots of the KV cache (default: the checkpoint's, or 4096).")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
) -> None:
    """Write a trained checkpoint as a bundle: five portable graphs, tokenizer, embeddings, check vectors.

    Every graph is run on its check vectors and compared with the torch reference. The bundle appears whole or
    not at all.
    """
    console = Console(highlight=False)
    started = time.perf_counter()
    with console.status("torch: loading") as status:
        from .export import export_checkpoint

        def progress(stage: str, phase: str) -> None:
            elapsed = time.perf_counter() - started
            status.update(f"{stage}: {phase} ({elapsed:.0f} s)")
            if phase == "done":
                console.print(f"{stage:<18}{elapsed:7.1f} s")

        export_checkpoint(
            checkpoint, output, context_length=context_length, overwrite=overwrite, progress=progress
        )
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    console.print(f"{output}: {size / 2**20:.1f} MiB; next: lira-edge build {output}", soft_wrap=True)
