"""`lira-edge bench`: tokens per second, stage by stage, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table as RichTable

from lira_engine.cli_options import MaxTilesOption, PrecisionOption, TargetOption
from lira_engine.system.terminal import plain_console, status

if TYPE_CHECKING:
    from lira_bench.speed.report import Table


def bench(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder that `lira-edge export` wrote.")],
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="OUT", help="Folder; default: bench-BUNDLE-TASK-ENGINES."),
    ] = None,
    task: Annotated[str, typer.Option(help="refseg, gcg or vqa.")] = "refseg",
    expression: Annotated[
        str | None, typer.Option(help="What the task is about; default: the object, What is it?")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="An image, or a folder; default: a generated one."),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Answers that are measured, per image.")] = 5,
    warmup: Annotated[int, typer.Option(min=0, help="Answers before them that are not.")] = 1,
    max_tiles: MaxTilesOption = None,
    target: TargetOption = "cpu",
    precision: PrecisionOption = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    forced: Annotated[
        bool, typer.Option("--forced", help="Give the answer's tokens (always so with synthetic weights).")
    ] = False,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Also without SEFE, without ILVC, and VQA.")
    ] = False,
    peer: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="torch, optimum, genai, llama-cpp, openvino, or all; repeatable."),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(metavar="DIR", help="What the torch peer reads.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what OUT holds.")] = False,
) -> None:
    """Measure tokens per second and latency, stage by stage.

    Writes OUT/bench.json, bench.md, stages.png, timeline.png and trace.json.
    """
    from lira_bench.peers.registry import PEERS, peers_named
    from lira_bench.speed import benchmark, output, report
    from lira_engine.errors import LiraError
    from lira_engine.targets import default_precision
    from lira_runtime.preprocess import check_tiles

    if task not in benchmark.TASKS:
        raise LiraError(f"--task is {task!r}, expected one of {', '.join(benchmark.TASKS)}")
    precision = precision or default_precision(target)
    check_tiles("max_tiles", max_tiles)
    names = list(PEERS) if peer == ["all"] else (peer or [])
    peers_named(names)
    if names and max_tiles is not None:
        raise LiraError("--max-tiles and --peer: peers get the bundle's own number of tiles, leave one out")
    folder = out or Path(f"bench-{bundle.resolve().name}-{task}-{target}-{precision}")
    output.check(folder, overwrite)
    console = plain_console()
    request = benchmark.Request(
        bundle, target, precision, task, expression, images, runs, warmup, threads, forced, ablation,
        max_tiles,
    )  # fmt: skip
    with status(plain_console(stderr=True), "opening the engines") as show:
        result = benchmark.run(request, show)
        record = dict(result.record)
        if names:
            from lira_bench.peers import compare
            from lira_bench.peers.result import table

            found = compare(
                bundle, target, precision, names, folder / "peers",
                threads=threads, progress=show, checkpoint=checkpoint,
                image=result.image,
            )  # fmt: skip
            record["peers"] = {"results": [one.as_dict() for one in found], "table": table(found)}
        show("drawing")
        output.write(folder, record, result.typical)

    console.print(report.heading(record), style="bold")
    for line in report.remarks(record):
        console.print(line, style="yellow", soft_wrap=True)
    console.print(report.setting(record), style="dim", soft_wrap=True)
    tables = [report.rate_table(record), report.figure_table(record), report.stage_table(record)]
    if ablation:
        tables.append(report.ablation_table(record))
    for each in tables:
        console.print()
        console.print(_on_terminal(each))
    if names:
        console.print()
        console.print(record["peers"]["table"])
    console.print(f"\n({report.AUTHORS})", style="dim", soft_wrap=True)
    console.print(f"wrote {folder / 'bench.json'}, {', '.join(output.OTHERS)}", soft_wrap=True)


def _on_terminal(table: Table) -> RichTable:
    columns, rows = table
    shown = RichTable(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        shown.add_column(column, justify="right" if number else "left")
    for row in rows:
        shown.add_row(*row)
    return shown
