"""`lira-edge export`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import DownloadColumn, TimeRemainingColumn

from lira_engine.bundle.manifest import MANIFEST_NAME, Manifest
from lira_engine.cli_options import CertificateOption, SignOption
from lira_engine.errors import quoted
from lira_engine.system.terminal import plain_console, progress_bar

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
        typer.Option(help="lira-2b or lira-8b: which weights, and which base and trunk if they are missing."),
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
            help="Store weights in fp16, bf16 or fp32: in all stages or, repeated, in single ones. Graphs "
            "compute in fp32 (default: fp16, or fp32 for a checkpoint in fp32).",
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written, and what it needs; write nothing.")
    ] = False,
    sign: SignOption = None,
    certificate: CertificateOption = None,
) -> None:
    """Write a trained checkpoint as a bundle: five portable graphs, tokenizer, embeddings, check vectors.

    Every graph is run on its check vectors and compared with the torch reference. The bundle appears whole or
    not at all. --dry-run downloads configuration and tokenizer from the hub, nothing else.
    """
    from .memory import check_memory

    if not dry_run:
        check_memory(threads)
    from lira_engine.trust.signer import signer_for

    from .plan import ExportRequest, plan_export

    signer = signer_for(sign, certificate)
    given = {"base": base, "head": head, "clip": clip, "classes": classes}
    pairs = (option.rpartition("=") for option in dtype or ())
    request = ExportRequest(
        checkpoint,
        output,
        size,
        {part: source for part, source in given.items() if source is not None},
        config,
        context_length,
        {stage or "all": name for stage, _, name in pairs},
        threads,
        overwrite,
    )
    console = plain_console()
    started = time.perf_counter()
    plan = plan_export(request, lambda line: console.print(line, soft_wrap=True))
    if dry_run:
        for line in (*plan.lines(), f"to write it: {request.command(overwrite)}"):
            console.print(line, soft_wrap=True)
        return
    with progress_bar(console, DownloadColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("torch: loading", total=None)
        from .export import export_planned

        def progress(step: Step) -> None:
            elapsed = time.perf_counter() - started
            description = f"{step.stage}: {step.phase} ({elapsed:.0f} s)"
            bar.update(task, description=description, completed=step.written, total=step.expected)
            if step.phase == "done":
                console.print(f"{step.stage:<18}{elapsed:7.1f} s")

        export_planned(plan, progress, signer)
    again = request.command(overwrite=True, sign=sign, certificate=certificate)
    for line in (*_remarks(output), f"reproduce: {again}"):
        console.print(line, soft_wrap=True)


def _remarks(bundle: Path) -> Iterator[str]:
    """Yield what the user should know of the bundle that was written."""
    provenance = Manifest.load(bundle / MANIFEST_NAME).provenance
    yield from provenance["notes"]
    for stage, weights in provenance["weights"].items():
        for name, reason in weights["kept_fp32"].items():
            yield f"{stage}: {name} stays fp32 ({reason})"
    if provenance["synthetic"]:
        yield "SYNTHETIC: the weights are random, the answers will be meaningless"
    written = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    yield f"{bundle}: {written / 2**20:.1f} MiB; next: lira-edge build {quoted(bundle)}"
