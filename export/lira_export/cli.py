"""`lira-edge export`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import DownloadColumn, TimeRemainingColumn

from lira_engine.bundle.manifest import MANIFEST_NAME, Manifest
from lira_engine.system.terminal import plain_console, progress_bar
from lira_engine.system.text import check_path

if TYPE_CHECKING:
    from .bundle_writer import Step


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Folder or checkout with LIRA's checkpoint files, or hub:OWNER/NAME (/FILE, @REVISION).",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="BUNDLE", help="Folder to write.")],
    size: Annotated[
        str | None,
        typer.Option(
            help="lira-2b or lira-8b: which weights, and where base and trunk come from if not there."
        ),
    ] = None,
    base: Annotated[str | None, typer.Option(help="InternVL2 folder, or hub:OWNER/NAME.")] = None,
    head: Annotated[str | None, typer.Option(help="OMG-Seg head, a file or hub:.")] = None,
    clip: Annotated[str | None, typer.Option(help="open_clip weights, a file or hub:.")] = None,
    classes: Annotated[str | None, typer.Option(help="Class embeddings, a file or hub:.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="config.json with sizes other than the published ones."),
    ] = None,
    context_length: Annotated[
        int | None, typer.Option(min=1, help="Slots of the KV cache (default: the checkpoint's, or 4096).")
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[STAGE=]DTYPE",
            help="How weights are kept: fp16, bf16 or fp32, for all stages or, repeated, for single ones "
            "(default: fp16, or fp32 for a checkpoint that is fp32). Arithmetic is fp32 in any case.",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
) -> None:
    """Write a trained checkpoint as a bundle: five portable graphs, tokenizer, embeddings, check vectors.

    Every graph is run on its check vectors and compared with the torch reference. The bundle appears whole or
    not at all.
    """
    from lira_engine.system.atomic import check_target

    from .config import LiraConfig
    from .memory import check_memory
    from .sources import locate

    check_memory(threads)
    for path in (str(output), checkpoint, base, head, clip, classes):
        check_path(path or "")
    console = plain_console()
    started = time.perf_counter()

    def announce(line: str) -> None:
        check_target(output, overwrite)  # nobody downloads gigabytes for a bundle that cannot be written
        console.print(line, soft_wrap=True)

    given = {"base": base, "head": head, "clip": clip, "classes": classes}
    files = locate(
        checkpoint,
        size=size,
        given={part: source for part, source in given.items() if source is not None},
        config=config,
        announce=announce,
    )
    sizes = LiraConfig.from_files(files.config, files.base, files.name)
    with progress_bar(console, DownloadColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("torch: loading", total=None)
        from .export import export_checkpoint

        def progress(step: Step) -> None:
            elapsed = time.perf_counter() - started
            description = f"{step.stage}: {step.phase} ({elapsed:.0f} s)"
            bar.update(task, description=description, completed=step.written, total=step.expected)
            if step.phase == "done":
                console.print(f"{step.stage:<18}{elapsed:7.1f} s")

        export_checkpoint(
            files,
            output,
            config=sizes,
            context_length=context_length,
            dtypes=_by_stage(dtype or ()),
            threads=threads,
            overwrite=overwrite,
            progress=progress,
        )
    provenance = Manifest.load(output / MANIFEST_NAME).provenance
    for note in provenance["notes"]:
        console.print(note, soft_wrap=True)
    for stage, weights in provenance["weights"].items():
        for name, reason in weights["kept_fp32"].items():
            console.print(f"{stage}: {name} stays fp32 ({reason})", soft_wrap=True)
    if provenance["synthetic"]:
        console.print("SYNTHETIC: the weights are random, the answers will be meaningless")
    written = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    console.print(f"{output}: {written / 2**20:.1f} MiB; next: lira-edge build {output}", soft_wrap=True)


def _by_stage(options: Iterable[str]) -> dict[str, str]:
    """["fp16", "llm=bf16"] -> {"all": "fp16", "llm": "bf16"}"""
    pairs = (option.rpartition("=") for option in options)
    return {stage or "all": dtype for stage, _, dtype in pairs}
