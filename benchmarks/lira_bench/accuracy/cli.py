"""`lira-edge eval`: accuracy of a bundle's engines in the field's own formats and metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lira_engine.cli_options import MaxTilesOption, PrecisionOption, TargetOption
from lira_engine.system.terminal import plain_console, progress_bar

if TYPE_CHECKING:
    from lira_bench.accuracy.run import Progress


def evaluate(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `lira-edge export` wrote.")],
    data: Annotated[Path, typer.Option(metavar="DIR", help="Annotations: a folder, or one of its files.")],
    task: Annotated[str, typer.Option(help="refseg, gcg, vqa, attreval, pope or chair.")],
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Folder; default: eval-BUNDLE-TASK-ENGINES."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: DIR/images, or the annotations' folder.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of RefCOCO or GranD-f: val, testA, test, ...")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many items, the first ones.")] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="OTHER", help="Another bundle, or engines such as cpu-int4.")
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Fail (exit code 2) if it is worse; with --compare it is OTHER's."
        ),
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Option(help="Appended to questions: 'Answer with a single word.'  [default: the protocol's]"),
    ] = None,
    protocol: Annotated[
        str, typer.Option(help="Rules: strict (ours), or authors (those of the authors' scripts).")
    ] = "strict",
    benchmark: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of --protocol authors: vqav2, okvqa, textvqa, vizwiz, ai2d, gqa.  [default: vqav2]",
        ),
    ] = None,
    ilvc: Annotated[
        str | None,
        typer.Option(
            help="Encode regions as they are named: auto, on, off, plain.  [default: the protocol's]"
        ),
    ] = None,
    max_tiles: MaxTilesOption = None,
    target: TargetOption = "cpu",
    precision: PrecisionOption = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads, of each worker.")] = None,
    workers: Annotated[str | None, typer.Option(help="ray: spread the images over a Ray cluster.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew instead of going on.")] = False,
) -> None:
    """Measure accuracy on annotated images, alone or beside other engines.

    Writes OUT/report.json and OUT/samples.jsonl; the same command goes on where it was stopped.
    """
    from lira_bench.accuracy import gate, ray_workers, tables
    from lira_bench.accuracy.compare import comparison, other_engines
    from lira_bench.accuracy.files import images_folder
    from lira_bench.accuracy.items import Source
    from lira_bench.accuracy.protocol import protocol_for
    from lira_bench.accuracy.run import evaluate as run_evaluation
    from lira_bench.accuracy.tasks import task_named
    from lira_bench.accuracy.worker import EngineChoice, Job
    from lira_engine.errors import LiraError
    from lira_engine.system.extras import install_line, missing_packages
    from lira_engine.targets import default_precision
    from lira_runtime import arguments

    if workers not in (None, "ray"):
        raise LiraError(f"--workers is {workers!r}, expected ray")
    if workers == "ray":
        ray_workers.check_installed()
    asked = task_named(task)
    if task == "attreval" and missing_packages("bench"):  # its picture comes last, after all the work
        raise LiraError(f"--task attreval draws with matplotlib: run {install_line('bench')}")
    arguments.optional_text("--instruction", instruction)
    if instruction is not None and not asked.short_answers:
        raise LiraError(f"--instruction is for questions with short answers, task {task} has none")
    if split is not None and not asked.has_splits:
        raise LiraError(f"--split is for refseg and gcg, the data of task {task} has none")
    rules = protocol_for(protocol, task, benchmark).changed(ilvc, instruction, max_tiles)
    required = gate.parse(require or [])
    precision = precision or default_precision(target)
    # Ray's workers have a working directory of their own.
    engines = EngineChoice(bundle.resolve(), target, precision)
    other = None if compare is None else other_engines(compare, engines)
    source = Source(data.resolve(), split, limit, rules.instruction)
    job = Job(engines, task, images_folder(source.data, images).resolve(), rules, threads)
    folder = out or Path(f"eval-{bundle.resolve().name}-{task}-{target}-{precision}")

    console = plain_console()
    dataset = rules.chosen(asked.read(source))
    with _progress(f"{target}-{precision}") as progress:
        this = run_evaluation(
            job, source, dataset, folder, overwrite=overwrite, workers=workers, progress=progress
        )
    if other is None:
        figures: gate.Figures = this.metrics
        tables.print_metrics(console, this)
    else:
        name, choice = other
        beside = Job(choice, task, job.images, rules, threads)
        with _progress(name) as progress:
            second = run_evaluation(
                beside,
                source,
                dataset,
                folder / f"compare-{name}",
                overwrite=overwrite,
                workers=workers,
                progress=progress,
                compared_with=this,
            )
        found = comparison(this, second)
        figures = {**second.metrics, **{key: found[key] for key in ("token_agreement", "mask_iou")}}
        tables.print_comparison(console, this, name, found)
        tables.print_left_out(console, this)
        if second.left_out != this.left_out:
            tables.print_left_out(console, second)
    written = [folder] if other is None else [folder, folder / f"compare-{other[0]}"]
    for of_engines in written:
        console.print(f"wrote {of_engines / 'report.json'} and samples.jsonl", soft_wrap=True)
    if task == "attreval":
        from lira_bench.accuracy import bars  # matplotlib takes its time

        for line in bars.write(folder / "attributes.png", this.scored, job.images):
            console.print(line, soft_wrap=True)
    gate.check(required, figures)


@contextmanager
def _progress(title: str) -> Iterator[Progress]:
    """A bar on the terminal's error stream while the block runs."""
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    with progress_bar(plain_console(stderr=True), MofNCompleteColumn(), TimeRemainingColumn()) as shown:
        bar = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(bar, completed=done, total=total)
