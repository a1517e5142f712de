"""`lira-edge build`, `inspect` and `doctor`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from lira_engine.cli_options import BundleArgument
from lira_engine.system.terminal import plain_console, print_tables, status


def build(
    bundle: BundleArgument,
    target: Annotated[
        str,
        typer.Option(
            help="Where the engines will run: cpu, cuda, tensorrt-rtx, or tensorrt (Jetson, data centre)."
        ),
    ] = "cpu",
    precision: Annotated[
        str | None,
        typer.Option(
            help="fp32, fp16 (GPUs), or the language model's weights in int8 (cpu) or int4.  "
            "[default: fp32 for cpu, else fp16]"
        ),
    ] = None,
    block_size: Annotated[
        int | None,
        typer.Option(
            help="int8, int4: inputs that share a scale: 32 (default for cpu and cuda), 64 (GPUs only), 128 "
            "(default for TensorRT)."
        ),
    ] = None,
    lm_head_bits: Annotated[
        int | None,
        typer.Option(help="Of the LM head in an int4 build: 4 (default), 8 (cpu, cuda) or 16 (TensorRT)."),
    ] = None,
    lm_head_parts: Annotated[
        int | None,
        typer.Option(help="TensorRT: products that the LM head is split into, to need less memory."),
    ] = None,
    encoders: Annotated[
        str | None,
        typer.Option(
            help="cpu: other stages in an int8 or int4 build: fp32, int8, or auto (int8 where faster)."
        ),
    ] = None,
    compute_capability: Annotated[
        str | None, typer.Option(help="tensorrt-rtx: of the GPUs that it is for, such as 8.6,8.9,12.0.")
    ] = None,
    sampling: Annotated[
        str | None,
        typer.Option(
            help="tensorrt: the pixel encoder samples by gathers (default) or by NVIDIA's plugin: one of "
            "gathers, plugin."
        ),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(help="cuda: cuda (default), tensorrt or nv-tensorrt-rtx, for all but the llm."),
    ] = None,
    allow_fallback: Annotated[
        bool, typer.Option("--allow-fallback", help="cuda: accept nodes that run on the CPU.")
    ] = False,
    threads: Annotated[int | None, typer.Option(min=1, help="cpu, cuda: threads for the checks.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Build again what is up to date.")] = False,
) -> None:
    """Build the engines of a bundle: for this machine's processor, checked on the bundle's check vectors, or
    for NVIDIA GPUs.

    Writes BUNDLE/engines/TARGET-PRECISION/, whole or not at all.
    """
    from lira_engine.build import build as build_engines
    from lira_engine.bundle.bundle import Bundle
    from lira_engine.engines.options import options_for
    from lira_engine.engines.record import check_target, read_build, usual_precision
    from lira_engine.engines.verified import verify_command
    from lira_engine.errors import LiraError
    from lira_engine.inspect import stage_table
    from lira_engine.ort.lowered_reference import file_name

    console = plain_console()
    given = {
        "block_size": block_size,
        "lm_head_bits": lm_head_bits,
        "lm_head_parts": lm_head_parts,
        "encoders": encoders,
        "compute_capabilities": None
        if compute_capability is None
        else tuple(part.strip() for part in compute_capability.split(",")),
        "sampling": sampling,
        "provider": provider,
        "allow_fallback": allow_fallback or None,
    }
    precision = precision or usual_precision(target)
    check_target(target, precision)
    given = {name: value for name, value in given.items() if value is not None}
    options = options_for(target, given, precision)
    if threads is not None and target.startswith("tensorrt"):
        raise LiraError(f"a build for {target} runs nothing: leave --threads out")
    opened = Bundle.open(bundle)
    started = time.perf_counter()
    with status(console) as show:

        def progress(stage: str, phase: str) -> None:
            show(f"{stage}: {phase} ({time.perf_counter() - started:.0f} s)")
            if phase == "done":
                console.print(f"{stage} is done after {time.perf_counter() - started:.0f} s")

        folder = build_engines(
            opened,
            target,
            precision,
            options,
            threads=threads,
            force=force,
            progress=progress,
        )
    record = read_build(folder, "")
    size = sum(entry.bytes for entry in record.files.values())
    errors = [error for stage in record.errors.values() for error in stage.values()]
    verify = verify_command(bundle, target, record.precision)
    found = (
        f"largest error on the check vectors {max(errors):.1e}"
        if errors
        else f"not run yet: `{verify}` on the device"
    )
    print_tables([stage_table(record)])
    if target.startswith("tensorrt") and record.precision == "int4" and file_name("llm") not in record.files:
        console.print(
            "built where no ONNX Runtime computes the lowered language model: verify will hold llm to the "
            "fp32 outputs only, which four bits miss by far. Build with --force once there is one",
            soft_wrap=True,
        )
    console.print(f"{folder}: {size / 2**20:.1f} MiB, {found}", soft_wrap=True)


def inspect(
    path: Annotated[Path, typer.Argument(help="A bundle, an engine folder or a checkpoint folder.")],
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file again.")] = False,
) -> None:
    """Show what a bundle, an engine folder or a checkpoint folder holds."""
    from lira_engine.inspect import describe

    print_tables(describe(path, verify))


def doctor(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="Also say which of its engines can run here.")
    ] = None,
) -> None:
    """Say what this machine can run, what is missing, and the line that installs it."""
    from lira_engine.doctor import examine

    print_tables(examine(bundle))
