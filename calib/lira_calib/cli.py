"""`lira-edge calibrate`: from pictures to a recipe, which `lira-edge build --recipe` lowers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lira_bench.json_output import JsonOption
from lira_calib.request import INT4, LLM, SENSITIVITY, VISION, Request
from lira_engine.cli_options import BundleArgument, ThreadsOption

if TYPE_CHECKING:
    from lira_calib.calibrate import Progress


def calibrate(
    bundle: BundleArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="RECIPE", help="Folder of the recipe to write.")
    ],
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Pictures of what the model will see.")
    ] = Request.images,
    questions: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Annotations in a form of `lira-edge eval`: a file, or a folder with them. Without any, "
            "the answers are the model's own.",
        ),
    ] = None,
    scenes: Annotated[int, typer.Option(min=1, help="Questions to calibrate on.")] = Request.scenes,
    held_out: Annotated[
        int, typer.Option(min=1, help="Questions about other pictures, by which builds are judged.")
    ] = Request.held_out,
    vision: Annotated[
        str, typer.Option(help=f"Matmuls of the encoders, SEFE and the pixel decoder: {', '.join(VISION)}.")
    ] = Request.vision,
    llm: Annotated[
        str | None,
        typer.Option(
            help=f"Matmuls of the language model: {', '.join(LLM)}. Default: int4; with --budget, the "
            "fastest."
        ),
    ] = Request.llm,
    int4: Annotated[
        str, typer.Option(help=f"How weights are rounded to 4 bits: {', '.join(INT4)}.")
    ] = Request.int4,
    block: Annotated[
        int, typer.Option(help="Inputs that share a scale of the weights: 32, 64 or 128.")
    ] = Request.block,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help='Search the fastest mixture that loses no more, such as "cIoU -0.5%"; also IoU (of masks '
            "with fp32's) and tokens.",
        ),
    ] = Request.budget,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Search for a device of `lira-edge plan`, whose times are predicted."
        ),
    ] = Request.device,
    sensitivity: Annotated[
        str,
        typer.Option(help=f"What the search measures alone: {' (blocks), '.join(SENSITIVITY)} (quick)."),
    ] = Request.sensitivity,
    chart: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw what each unit alone does: .png or .svg.")
    ] = Request.chart,
    threads: ThreadsOption = Request.threads,
    json: JsonOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a recipe, and start anew instead of going on.")
    ] = Request.overwrite,
) -> None:
    """Decide how each weight is stored, by masks, tokens and measured times, and write a recipe.

    The same command goes on where it was stopped. Then: `lira-edge build BUNDLE --recipe RECIPE`.
    """
    from lira_bench.json_output import check_json
    from lira_bench.reproduce import finish, request_line
    from lira_calib.calibrate import calibrate as write_recipe
    from lira_calib.report import figures, print_result
    from lira_engine.system.terminal import plain_console

    request = Request(
        bundle, output, images, tuple(questions or ()), scenes, held_out, vision, llm, int4, block, budget,
        device, sensitivity, chart, threads, overwrite,
    )  # fmt: skip
    check_json(json)
    result = write_recipe(request, _bar)
    console = plain_console()
    print_result(console, result)
    finish(console, request_line("calibrate", request, json), json, lambda: figures(result))


@contextmanager
def _bar(title: str) -> Iterator[Progress]:
    """Show a bar, with the time left, on the terminal's error stream while the block runs."""
    from rich.progress import MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

    from lira_engine.system.terminal import plain_console, progress_bar

    columns = (MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with progress_bar(plain_console(stderr=True), *columns) as shown:
        task = shown.add_task(title, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)
