"""The command of `python -m lira_bench.serving`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lira_bench.serving.request import Request
from lira_engine.cli_options import BundleArgument, ThreadsOption


def serving(
    bundle: BundleArgument,
    scenes: Annotated[Path, typer.Argument(help="Folder that `python -m lira_nano scenes` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="Folder of the results.")],
    clients: Annotated[int, typer.Option(min=1, help="Clients at the same time.")] = Request.clients,
    seconds: Annotated[
        float, typer.Option(min=0, help="For which they ask; 0 leaves the load out.")
    ] = Request.seconds,
    leave: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the requests whose client leaves.")
    ] = Request.leave,
    rounds: Annotated[
        int, typer.Option(min=0, help="Of one client beside a plain loop; 0 leaves it out.")
    ] = Request.rounds,
    target: Annotated[str, typer.Option(help="Engines.")] = Request.target,
    precision: Annotated[str, typer.Option(help="Of the engines.")] = Request.precision,
    threads: ThreadsOption = Request.threads,
    scene_cache: Annotated[
        int, typer.Option(min=0, metavar="MIB", help="Of the server under load.")
    ] = Request.scene_cache,
    queue: Annotated[int, typer.Option(min=0, help="Questions that may wait.")] = Request.queue,
    seed: Annotated[int, typer.Option(help="Of the traffic.")] = Request.seed,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the results in OUT.")
    ] = Request.overwrite,
) -> None:
    """Put a server under load, and measure what a request costs beside a plain loop in Python.

    Checks that answers are those of the same questions asked alone, and that memory is flat. Writes
    OUT/serving.json, serving.md and the server's logs. Exits with 1 if a check fails.
    """
    from lira_bench.serving.benchmark import benchmark
    from lira_bench.serving.report import failed, markdown
    from lira_engine.system.terminal import plain_console, status

    request = Request(
        bundle, scenes, output, clients, seconds, leave, rounds, target, precision, threads, scene_cache,
        queue, seed, overwrite,
    )  # fmt: skip
    with status(plain_console(stderr=True)) as show:
        record = benchmark(request, show=show)
    plain_console().print(markdown(record), soft_wrap=True)
    plain_console().print(record["reproduce"], soft_wrap=True)
    if failed(record):
        raise SystemExit(1)
