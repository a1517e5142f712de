"""`lira-edge build`, `inspect` and `doctor`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from lira_engine.build_options import precision_help, target_help, with_build_options
from lira_engine.cli_options import BundleArgument, CertificateOption, SignOption
from lira_engine.system.terminal import plain_console, print_tables, status, warn, write
from lira_engine.targets import target_named


@with_build_options
def build(
    bundle: BundleArgument,
    target: Annotated[str, typer.Option(help=f"Where the engines will run: {target_help()}.")] = "cpu",
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE",
            help="Store each weight as `lira-edge calibrate` decided, keep the engines only if their masks "
            "and tokens on held-out pictures are within the recipe's budget, and write them to "
            "BUNDLE/engines/TARGET-mixed/.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="int8 and int4 quantize the language model's weights. A target's first one is its default. "
            f"{precision_help()}"
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="For the checks of targets that run engines at the build.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Build even if the engines are up to date; with --recipe, also keep engines beyond the "
            "recipe's budget, which every run then says; for a GPU, also engines that compute wrong outputs, "
            "for `lira-edge verify --bisect`.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written and what it needs; write nothing.")
    ] = False,
    sign: SignOption = None,
    certificate: CertificateOption = None,
    **given: object,
) -> None:
    """Build the engines of a bundle for one target, and check them on the bundle's check vectors.

    Writes BUNDLE/engines/TARGET-PRECISION/, whole or not at all. Engines that this machine cannot run are
    checked by `lira-edge verify` on the machine that will run them.
    """
    from lira_engine.build import build as build_engines
    from lira_engine.build import chosen_precision, plan_build
    from lira_engine.bundle.bundle import Bundle
    from lira_engine.command_line import command_text
    from lira_engine.engines.near_ties import flip_rows
    from lira_engine.engines.record import read_build
    from lira_engine.engines.usable import forced_remark
    from lira_engine.errors import LiraError
    from lira_engine.inspect import plan_tables, stage_table
    from lira_engine.trust.signer import signer_for

    chosen = target_named(target)
    asked = {name: value for name, value in given.items() if value is not None and value is not False}
    wanted = chosen_precision(precision, recipe, chosen.precisions[0])
    chosen.check_precision(wanted)
    options = chosen.given_options(asked, wanted)
    if threads is not None and not chosen.runs_at_build:
        raise LiraError(f"a build for {target} runs nothing: leave --threads out")
    signer = signer_for(sign, certificate)
    opened, console = Bundle.open(bundle), plain_console()
    if dry_run:
        print_tables(plan_tables(plan_build(opened, target, wanted, options, force, recipe)))
        return
    started, warnings = time.perf_counter(), list[str]()
    with status(console) as show:

        def progress(stage: str, phase: str) -> None:
            show(f"{stage}: {phase} ({time.perf_counter() - started:.0f} s)")
            if phase == "done" and stage != "judge":
                console.print(f"{stage} is done after {time.perf_counter() - started:.0f} s")

        folder = build_engines(
            opened,
            target,
            wanted,
            options,
            threads=threads,
            force=force,
            progress=progress,
            recipe=recipe,
            signer=signer,
            warned=warnings.append,
        )
    record = read_build(folder, "")
    size = sum(entry.bytes for entry in record.files.values())
    errors = [error for stage in record.errors.values() for error in stage.values()]
    verify = chosen.verify_command(bundle, record.precision)
    found = (
        f"largest error on the check vectors {max(errors):.1e}"
        if errors
        else f"not run yet: `{verify}` on the device"
    )
    print_tables([stage_table(record)])
    if record.judgement is not None:
        title = "held-out pictures" if record.recipe else "near ties on the check vectors"
        print_tables([(title, flip_rows(record.flips) + list(record.judgement.rows()))])
    for line in warnings:
        warn(line)
    if record.wrong:
        warn(forced_remark(record))
        found = f"wrong: `{verify} --bisect` names the node"
    for line in (*chosen.remarks(record), f"{folder}: {size / 2**20:.1f} MiB, {found}"):
        console.print(line, soft_wrap=True)
    arguments = {
        option.argument: option.text(getattr(options, option.name))
        for option in options.all()
        if option.name in asked
    }
    how: dict[str, object] = {"precision": wanted} if recipe is None else {"recipe": recipe}
    overridden = record.wrong or (record.judgement is not None and record.judgement.forced)
    signing = {"sign": sign, "certificate": certificate}
    again = command_text("build", bundle, target=target, **how, threads=threads, **arguments, **signing)
    console.print(
        f"reproduce: {again} --force" if recipe is None or overridden else f"reproduce: {again}",
        soft_wrap=True,
    )


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A bundle, an engine folder, a recipe or a checkpoint folder.")
    ],
    verify: Annotated[bool, typer.Option("--verify", help="Hash every file again.")] = False,
) -> None:
    """Show what a bundle, an engine folder, a recipe or a checkpoint folder holds."""
    from lira_engine.inspect import describe

    print_tables(describe(path, verify))


def doctor(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="Also say which of its engines can run here.")
    ] = None,
    sbom: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Instead, write a bill of materials of the installed packages and native libraries here, as "
            "CycloneDX JSON; -: print it.",
        ),
    ] = None,
) -> None:
    """Say what this machine can run, what is missing, and the command that installs it."""
    from lira_engine.doctor import examine
    from lira_engine.errors import LiraError
    from lira_engine.sbom.document import document
    from lira_engine.system.atomic import atomic_write

    if sbom is None:
        print_tables(examine(bundle))
        return
    if bundle is not None:
        raise LiraError("--sbom describes what is installed, not a bundle: leave BUNDLE out")
    if sbom == Path("-"):
        write(plain_console(), document())
        return
    with atomic_write(sbom) as file:
        file.write(document().encode())
    plain_console().print(f"wrote {sbom}", soft_wrap=True)
