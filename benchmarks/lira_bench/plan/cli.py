"""`lira-edge plan`: does it fit, and how fast would it be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lira_engine.system.terminal import plain_console


def plan(
    size: Annotated[
        str, typer.Argument(metavar="SIZE", help="lira-2b, lira-8b, lira-qwen2-1.5b, lira-nano, or a bundle.")
    ],
    device: Annotated[
        str | None, typer.Option(help="A device's name, or this-machine. A wrong one lists them all.")
    ] = None,
    precision: Annotated[str, typer.Option(help="fp32, fp16 (GPUs), int8, int4.")] = "int4",
    tiles: Annotated[int | None, typer.Option(help="Tiles of the image. Default: the most.")] = None,
    block_size: Annotated[
        int | None, typer.Option(help="Inputs per scale: 32 or 128. Default: 32 on CPUs, 128 on GPUs.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="BENCH", help="The bench.json of `lira-edge bench`: compare.")
    ] = None,
    all_devices: Annotated[bool, typer.Option("--all-devices", help="One table over all devices.")] = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the figures here.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the table over all devices here.")
    ] = None,
) -> None:
    """Does a model fit a device, and how fast may it be there: a prediction, no hardware needed.

    From the operations and bytes of the model's graphs, and the device's peak and bandwidth.
    """
    from lira_bench.plan import devices, graph_costs, report
    from lira_bench.plan.against import Measured, compare
    from lira_bench.plan.planning import make_plan, plans_for_all
    from lira_bench.plan.precision import check_precision
    from lira_bench.plan.workload import workload
    from lira_engine.errors import LiraError

    if all_devices == (device is not None):
        raise LiraError(f"expected either --device or --all-devices; devices: {', '.join(devices.names())}")
    if markdown is not None and not all_devices:
        raise LiraError("--markdown takes the table over all devices: add --all-devices")
    if against is not None and all_devices:
        raise LiraError("--against compares one device: name the measured one with --device")
    costs = graph_costs.load(size)
    asked = workload(costs, tiles)
    out = plain_console()
    if device is None:
        plans, left_out = plans_for_all(costs, precision, asked, block_size)
        report.print_all(out, plans, left_out)
        if markdown is not None:
            _write(out, markdown, report.markdown(plans, left_out))
        if json is not None:
            _write_json(out, json, [one.as_dict() for one in plans])
        return
    check_precision(precision, devices.kind_of(device), device)  # before anything is measured
    measured = None if against is None else Measured(against)
    chosen = devices.find(device)
    made = make_plan(costs, chosen, precision, asked, block_size)
    report.print_plan(out, made)
    contents = made.as_dict()
    if measured is not None:
        comparison = compare(costs, chosen, precision, measured, block_size)
        report.print_compared(out, comparison, measured.missing, str(against))
        contents["against"] = comparison.as_dict()
    if json is not None:
        _write_json(out, json, contents)


def _write_json(out: Console, path: Path, contents: object) -> None:
    from json import dumps

    _write(out, path, dumps(contents, indent=1) + "\n")


def _write(out: Console, path: Path, text: str) -> None:
    from lira_engine.system.atomic import atomic_write

    with atomic_write(path) as file:
        file.write(text.encode(errors="replace"))
    out.print(f"wrote {path}", soft_wrap=True)
