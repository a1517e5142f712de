"""`lira-edge run` and `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lira_engine.cli_options import (
    BuiltTargetOption,
    BundleArgument,
    DraftOption,
    DriverOption,
    MaxTilesOption,
    PrecisionOption,
    TargetOption,
    ThreadsOption,
    UnverifiedOption,
)
from lira_engine.system.terminal import plain_console, print_tables, status, warn


def run(
    bundle: BundleArgument,
    image: Annotated[Path, typer.Option(metavar="FILE", help="JPEG, PNG, WebP or BMP.")],
    ask: Annotated[
        str | None,
        typer.Option(
            help="A question in your own words. <image> in it is the image's place; other tags ([SEG], <p>, "
            "</s>) become the tokens of that name."
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="A task: refseg, gcg, vqa, caption.")] = None,
    expression: Annotated[
        str | None, typer.Option(help="The text that the task needs, such as the object to segment.")
    ] = None,
    ilvc: Annotated[
        str, typer.Option(help="Encode each region again as the answer names it: auto, on, off, plain.")
    ] = "auto",
    max_tiles: MaxTilesOption = None,
    target: TargetOption = "cpu",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    unverified: UnverifiedOption = False,
    draft: DraftOption = "auto",
    driver: DriverOption = "auto",
    overlay: Annotated[Path | None, typer.Option(metavar="PNG", help="Write a picture here.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the answer here.")] = None,
    attributes: Annotated[
        str | None, typer.Option(help="Words to rank at the first mask: red,green.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Default: the task's, or 512.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(help="Sample from the likeliest tokens with this share of the probability.")
    ] = 1.0,
    top_k: Annotated[int, typer.Option(help="Sample from the k likeliest tokens; 0: from all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Make sampling repeatable.")] = None,
) -> None:
    """Answer a question about an image: text, masks, timings.

    Streams the answer's text, then lists the phrases that have masks.
    """
    from lira_engine.cuda.driver import check_driver
    from lira_engine.errors import LiraError
    from lira_engine.targets import default_precision
    from lira_runtime import arguments
    from lira_runtime.drafts import check_draft
    from lira_runtime.prompts import Question, check_ilvc
    from lira_runtime.run import run as run_question

    for option, given in (("--ask", ask), ("--expression", expression), ("--attributes", attributes)):
        arguments.optional_text(option, given)
    words = [word.strip() for word in (attributes or "").split(",") if word.strip()]
    if attributes is not None and not words:
        raise LiraError("--attributes is empty; expected words with commas between them, such as red,green")
    mode = check_ilvc(ilvc)
    drafting = check_draft(draft)
    run_question(
        bundle,
        image,
        Question(ask, task, expression, mode, max_new_tokens, temperature, top_p, top_k, seed),
        target=target,
        precision=precision or default_precision(target),
        threads=threads,
        unverified=unverified,
        draft=drafting,
        driver=check_driver(driver),
        max_tiles=max_tiles,
        words=words,
        overlay=overlay,
        json=json,
    )


def verify(
    bundle: BundleArgument,
    target: BuiltTargetOption = "cpu",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    driver: DriverOption = "auto",
    bisect: Annotated[
        bool,
        typer.Option(
            "--bisect",
            help="First compare each engine with ONNX Runtime on the CPU, and name the first node that the "
            "device computes wrongly.",
        ),
    ] = False,
    signature: Annotated[
        bool,
        typer.Option(
            "--signature",
            help="Run nothing: check that BUNDLE, or one engine folder of it, is as it was signed.",
        ),
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --signature: the public key or root certificate (PEM) that must have signed. Default: "
            "any that you trust.",
        ),
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="With --key: if all is as signed, trust it from now on.")
    ] = False,
) -> None:
    """Check built engines on this machine's device: check vectors, and one short answer.

    Remembers the result for this user; the bundle stays as it is. Engines for GPUs do not run before that.
    """
    from lira_engine.errors import LiraError

    if signature:
        from lira_engine.signatures import check_signatures

        print_tables(check_signatures(bundle, key, trust))
        return
    if key is not None or trust:
        raise LiraError("--key and --trust go with --signature: add it")
    from lira_engine.bisect import find_wrong_node
    from lira_engine.bisect import tables as found_nodes
    from lira_engine.bundle.bundle import Bundle
    from lira_engine.cuda.driver import check_driver
    from lira_engine.engines.accuracy import WrongOutput
    from lira_engine.engines.record import read_build
    from lira_engine.engines.usable import forced_remark
    from lira_engine.targets import default_precision, target_named
    from lira_engine.verify import tables, verify_engines
    from lira_runtime.verify_answer import check_answer

    precision, chosen = precision or default_precision(target), check_driver(driver)
    with status(plain_console()) as show:
        opened = Bundle.open(bundle)
        if bisect:
            findings = find_wrong_node(opened, target, precision, threads, show, driver=chosen)
            print_tables(found_nodes(findings))
            findings[-1].raise_if_wrong(target)
        try:
            found = verify_engines(opened, target, precision, threads, show, ask=check_answer, driver=chosen)
        except WrongOutput as error:
            command = target_named(target).verify_command(bundle, precision)
            mend = (
                "no node of its graph is, so its weights are, or what runs beside the graph: build it again "
                "with --force"
                if bisect
                else f"`{command} --bisect` names the node"
            )
            raise WrongOutput(f"{error}; {mend}") from error
    build = read_build(opened.engine_folder(target, precision), "")
    warn(forced_remark(build))
    print_tables(tables(found, build))
