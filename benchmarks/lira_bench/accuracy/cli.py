"""`lira-edge eval`: accuracy of a bundle's engines in the field's own formats and metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lira_bench.accuracy.request import Request
from lira_bench.json_output import JsonOption
from lira_engine.cli_options import DriverOption, MaxTilesOption, PrecisionOption, TargetOption

if TYPE_CHECKING:
    from lira_bench.accuracy.run import Progress


def evaluate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `lira-edge export` wrote.")],
    data: Annotated[Path, typer.Option(metavar="DIR", help="Annotations: a folder, or one of its files.")],
    task: Annotated[str, typer.Option(help="refseg, gcg, vqa, attreval, pope or chair.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Folder; default: eval-BUNDLE-TASK-ENGINES."),
    ] = Request.output,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: DIR/images, or the annotations' folder.")
    ] = Request.images,
    split: Annotated[
        str | None, typer.Option(help="Of RefCOCO or GranD-f: val, testA, test, ...")
    ] = Request.split,
    limit: Annotated[int | None, typer.Option(min=1, help="Evaluate only the first items.")] = Request.limit,
    compare: Annotated[
        str | None, typer.Option(metavar="OTHER", help="Another bundle, or engines such as cpu-int4.")
    ] = Request.compare,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Fail (exit code 2) if it is worse; with --compare it is OTHER's."
        ),
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Option(help="Appended to questions: 'Answer with a single word.' Default: the protocol's."),
    ] = Request.instruction,
    protocol: Annotated[
        str, typer.Option(help="Rules: strict (ours), or authors (those of the authors' scripts).")
    ] = Request.protocol,
    benchmark: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of --protocol authors: vqav2, okvqa, textvqa, vizwiz, ai2d, gqa. Default: vqav2.",
        ),
    ] = Request.benchmark,
    ilvc: Annotated[
        str | None,
        typer.Option(
            help="Encode regions again as they are named: auto, on, off, plain. Default: the protocol's."
        ),
    ] = Request.ilvc,
    max_tiles: MaxTilesOption = Request.max_tiles,
    target: TargetOption = Request.target,
    precision: PrecisionOption = Request.precision,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads, of each worker.")
    ] = Request.threads,
    driver: DriverOption = Request.driver,
    workers: Annotated[
        str | None, typer.Option(help="ray: spread the images over a Ray cluster.")
    ] = Request.workers,
    json: JsonOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew instead of going on.")
    ] = Request.overwrite,
) -> None:
    """Measure accuracy on annotated images, alone or beside other engines.

    Writes OUT/report.json and OUT/samples.jsonl; the same command goes on where it was stopped.
    """
    from lira_bench.accuracy import evaluation, gate, tables
    from lira_bench.json_output import check_json
    from lira_bench.reproduce import finish, request_line
    from lira_engine.cuda.driver import check_driver
    from lira_engine.system.terminal import plain_console

    request = Request(
        bundle, data, task, output, images, split, limit, compare, tuple(require or ()), instruction,
        protocol, benchmark, ilvc, max_tiles, target, precision, threads, check_driver(driver), workers,
        overwrite,
    )  # fmt: skip
    check_json(json)
    result = evaluation.evaluate_request(request, _bar)
    console = plain_console()
    tables.print_result(console, result)
    finish(console, request_line("eval", request, json), json, lambda: evaluation.figures(result))
    gate.check(result.required, result.rated)


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    """Show a bar on the terminal's error stream while the block runs."""
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    from lira_engine.system.terminal import plain_console, progress_bar

    with progress_bar(plain_console(stderr=True), MofNCompleteColumn(), TimeRemainingColumn()) as shown:
        task = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
