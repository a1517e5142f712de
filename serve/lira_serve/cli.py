"""`lira-edge serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lira_engine.cli_options import (
    BundleArgument,
    DraftOption,
    DriverOption,
    PrecisionOption,
    TargetOption,
    ThreadsOption,
    UnverifiedOption,
)


def serve(
    bundle: BundleArgument,
    target: TargetOption = "cpu",
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    unverified: UnverifiedOption = False,
    draft: DraftOption = "auto",
    driver: DriverOption = "auto",
    host: Annotated[
        str, typer.Option(help="Address to listen at. Any but a loopback one needs --api-key-file.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keys that clients must have, one a line.")
    ] = None,
    scene_cache: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory for pictures that may be asked about again.")
    ] = "2GiB",
    queue: Annotated[int, typer.Option(min=0, help="Questions that may wait; more get a 503.")] = 8,
    allow_url: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="Fetch pictures from this host. May be given several times."),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN", help="Let this site's pages ask from a browser. May be given several times."
        ),
    ] = None,
    log_questions: Annotated[
        bool,
        typer.Option("--log-questions", help="Write questions, and the digests of pictures, into the log."),
    ] = False,
    on_ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Answer with replicas on Ray Serve: on the cluster of RAY_ADDRESS, else on this machine.",
        ),
    ] = False,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Of --ray; one for each machine if not given.")
    ] = None,
) -> None:
    """Serve a bundle: a page, OpenAI's chat completions with masks, and segmentation.

    Opens the engines once, prints the address when a first answer has warmed them up, and ends at SIGTERM
    when the running answer is finished.
    """
    from lira_engine.cuda.driver import check_driver
    from lira_engine.errors import LiraError
    from lira_engine.targets import default_precision
    from lira_runtime.drafts import check_draft
    from lira_serve.access import check_host, check_origin, read_keys
    from lira_serve.on_ray.run import run_on_ray
    from lira_serve.run import run
    from lira_serve.settings import Settings, bytes_of

    keys = () if api_key_file is None else read_keys(api_key_file)
    check_host(host, keys)
    for origin in allow_origin or ():
        check_origin(origin)
    settings = Settings(
        bundle,
        target,
        precision or default_precision(target),
        threads,
        unverified,
        check_draft(draft),
        check_driver(driver),
        host,
        port,
        keys,
        bytes_of("--scene-cache", scene_cache),
        queue,
        tuple(allow_url or ()),
        log_questions,
        tuple(allow_origin or ()),
    )
    if on_ray:
        run_on_ray(settings, replicas)
    elif replicas is not None:
        raise LiraError(f"--replicas {replicas} is given without --ray; expected both, or neither")
    else:
        run(settings)
