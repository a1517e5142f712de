"""`lira-edge plan`: does a model fit a device, and how fast would it be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lira_bench.json_output import JsonOption


def plan(
    size: Annotated[
        str, typer.Argument(metavar="SIZE", help="lira-2b, lira-8b, lira-qwen2-1.5b, lira-nano, or a bundle.")
    ],
    device: Annotated[
        str | None, typer.Option(help="A device's name, or this-machine. A wrong name lists them all.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, fp16 (GPUs), int8 (CPUs), int4, mixed (vision stages in w8a8), w8a8. Default: int4."
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE", help="Of `lira-edge calibrate`, for SIZE, a bundle: it sets the precision."
        ),
    ] = None,
    tiles: Annotated[int | None, typer.Option(help="Tiles of the image. Default: the most.")] = None,
    block_size: Annotated[
        int | None, typer.Option(help="Inputs per scale: 32 or 128. Default: 32 on CPUs, 128 on GPUs.")
    ] = None,
    prefill: Annotated[
        str,
        typer.Option(help="Of quantized engines for CPUs, as built: int8 or same (passes of many rows)."),
    ] = "int8",
    against: Annotated[
        Path | None, typer.Option(metavar="BENCH", help="The bench.json of `lira-edge bench`: compare.")
    ] = None,
    all_devices: Annotated[bool, typer.Option("--all-devices", help="One table over all devices.")] = False,
    json: JsonOption = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the table over all devices here.")
    ] = None,
) -> None:
    """Predict whether a model fits a device and how fast it is there, without the hardware.

    From the operations and bytes of the model's graphs, and the device's peak and bandwidth.
    """
    from lira_bench.json_output import check_json, write_json
    from lira_bench.plan import devices, graph_costs, report, report_all
    from lira_bench.plan.against import Measured, compare
    from lira_bench.plan.planning import make_plan, plans_for_all
    from lira_bench.plan.precision import MIXED, Build
    from lira_bench.plan.recipe_groups import groups_of
    from lira_bench.plan.workload import workload
    from lira_engine.errors import LiraError
    from lira_engine.system.atomic import atomic_write
    from lira_engine.system.terminal import plain_console

    if all_devices == (device is not None):
        raise LiraError(f"expected either --device or --all-devices; devices: {', '.join(devices.names())}")
    if markdown is not None and not all_devices:
        raise LiraError("--markdown takes the table over all devices: add --all-devices")
    if against is not None and all_devices:
        raise LiraError("--against compares one device: name the measured one with --device")
    if recipe is not None and (precision is not None or block_size is not None):
        raise LiraError("--recipe sets the precision of every weight: leave --precision and --block-size out")
    check_json(json)
    costs = graph_costs.load(size)
    groups = None if recipe is None else groups_of(size, recipe)
    build = Build(MIXED if groups is not None else precision or "int4", block_size, prefill, groups)
    asked = workload(costs, tiles)
    out = plain_console()
    contents: Any
    if device is None:
        plans, left_out = plans_for_all(costs, build, asked)
        report_all.print_all(out, plans, left_out)
        if markdown is not None:
            with atomic_write(markdown) as file:
                file.write(report_all.markdown(plans, left_out).encode(errors="replace"))
            out.print(f"wrote {markdown}", soft_wrap=True)
        contents = [one.as_dict() for one in plans]
    else:
        build.check(devices.kind_of(device), device)  # before anything is measured
        measured = None if against is None else Measured(against)
        chosen = devices.find(device)
        made = make_plan(costs, chosen, build, asked)
        report.print_plan(out, made)
        contents = made.as_dict()
        if measured is not None:
            comparison = compare(costs, chosen, build, measured)
            report.print_compared(out, comparison, measured.missing, str(against))
            contents["against"] = comparison.as_dict()
    if json is not None:
        write_json(out, json, contents)
