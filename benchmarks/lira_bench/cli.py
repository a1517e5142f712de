"""`lira-edge bench`: tokens per second, stage by stage, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lira_bench.json_output import JsonOption
from lira_bench.speed.request import Request
from lira_engine.cli_options import (
    DraftOption,
    DriverOption,
    MaxTilesOption,
    PrecisionOption,
    TargetOption,
    ThreadsOption,
)


def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `lira-edge export` wrote.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Folder; default: bench-BUNDLE-TASK-ENGINES."),
    ] = Request.output,
    task: Annotated[str, typer.Option(help="refseg, gcg or vqa.")] = Request.task,
    expression: Annotated[
        str | None, typer.Option(help="What the task is about; default: the object, What is it?")
    ] = Request.expression,
    images: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="An image, or a folder of images; default: a generated image."),
    ] = Request.images,
    runs: Annotated[int, typer.Option(min=1, help="Measured answers per image.")] = Request.runs,
    warmup: Annotated[int, typer.Option(min=0, help="Answers before them, not measured.")] = Request.warmup,
    max_tiles: MaxTilesOption = Request.max_tiles,
    target: TargetOption = Request.target,
    precision: PrecisionOption = Request.precision,
    threads: ThreadsOption = Request.threads,
    forced: Annotated[
        bool, typer.Option("--forced", help="Give the answer's tokens (always so with synthetic weights).")
    ] = Request.forced,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Also measure without SEFE, without ILVC, and VQA.")
    ] = Request.ablation,
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another runtime (see docs/peers.md), or all; repeatable."),
    ] = None,
    peer_rows: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Rows that peers prefill; default: those of a prompt."),
    ] = Request.peer_rows,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Checkpoint that the torch peer reads.")
    ] = Request.checkpoint,
    draft: DraftOption = Request.draft,
    all: Annotated[
        bool,
        typer.Option("--all", help="Measure every engine that is built and runs here, and compare them."),
    ] = Request.all,
    submit: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --all: also write the figures to share, without host name, user name or path.",
        ),
    ] = Request.submit,
    driver: DriverOption = Request.driver,
    json: JsonOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results in OUT.")
    ] = Request.overwrite,
    require_quiet: Annotated[
        bool, typer.Option("--require-quiet", help="Fail (exit code 2) if other programs used the cores.")
    ] = Request.require_quiet,
) -> None:
    """Measure tokens per second and latency, stage by stage.

    Writes OUT/bench.json, bench.md, stages.png, timeline.png and trace.json; with --all these into
    OUT/TARGET-PRECISION, and OUT/results.md, results.png and results.json.
    """
    from lira_bench.json_output import check_json
    from lira_bench.reproduce import finish, request_line
    from lira_bench.speed import benchmark, terminal
    from lira_bench.speed.figures import figures
    from lira_engine.cuda.driver import check_driver
    from lira_engine.system.terminal import plain_console, status
    from lira_runtime.drafts import check_draft

    request = Request(
        bundle, output, task, expression, images, runs, warmup, max_tiles, target, precision, threads, forced,
        ablation, tuple(peer or ()), peer_rows, checkpoint, overwrite, require_quiet, check_draft(draft),
        all, submit, check_driver(driver),
    )  # fmt: skip
    check_json(json)
    if request.all:
        _bench_all(request, json)
        return
    with status(plain_console(stderr=True)) as show:
        result = benchmark.bench(request, show)
    console = plain_console()
    terminal.print_record(console, result.record, result.folder)
    line = request_line("bench", request, json)
    finish(console, line, json, lambda: figures(result.record, result.folder))


def _bench_all(request: Request, json: Path | None) -> None:
    """Measure all engines, print and write what was found. Raises LiraError at the end if one failed."""
    from lira_bench.reproduce import finish, request_line
    from lira_bench.results import all_engines, submission, terminal
    from lira_engine.system.terminal import plain_console, status

    with status(plain_console(stderr=True)) as show:
        measured = all_engines.bench_all(request, show)
    console = plain_console()
    terminal.print_results(console, measured.results, measured.folder)
    if request.submit is not None and measured.results.measured:
        told = submission.write(request.submit, measured.results)
        terminal.print_submission(console, request.submit, told)
    line = request_line("bench", request, json)
    finish(console, line, json, lambda: {**measured.results.to_json(), "output": str(measured.folder)})
    measured.check()
