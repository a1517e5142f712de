"""A benchmark from its request to its files: open the engines, warm up, measure, write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from lira_bench.bandwidth import copy_bandwidth, read_bandwidth
from lira_bench.forced import TASKS
from lira_bench.peers.compare import check_target, compare
from lira_bench.peers.registry import PEERS, peers_named
from lira_bench.peers.result import table
from lira_bench.sample_image import sample_image
from lira_bench.speed import output, traffic
from lira_bench.speed.ablation import VARIANTS, ablation
from lira_bench.speed.card import IDLE_SECONDS, Card, CardLoad, open_card
from lira_bench.speed.measure import Question, Run, measure, question
from lira_bench.speed.quiet import Quiet, require_quiet, require_quiet_now
from lira_bench.speed.record import Recorder, recorded
from lira_bench.speed.request import Request
from lira_bench.speed.summary import Traffic, decode_context, record
from lira_engine.bundle.bundle import Bundle
from lira_engine.cuda.opening import open_driver
from lira_engine.engines.runner import Engines
from lira_engine.errors import LiraError
from lira_engine.system import load
from lira_engine.system.machine import peak_rss_mib, this_machine
from lira_engine.system.terminal import warn
from lira_engine.targets import TARGETS, default_precision
from lira_runtime import Lira
from lira_runtime.images import open_image
from lira_runtime.preprocess import check_tiles
from lira_runtime.prompts import Ilvc

EXPRESSIONS = {"refseg": "the object", "gcg": None, "vqa": "What is in the image?"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

Progress = Callable[[str], None]
"""Called with what is being done."""


@dataclass(frozen=True)
class Result:
    """`record` is the content of bench.json in `folder`; `typical` is the run with the median total."""

    record: dict[str, Any]
    typical: Run
    folder: Path


def bench(request: Request, progress: Progress = lambda doing: None) -> Result:
    """Measure the answers and the peers that `request` names, and write the files of the result.

    Raises LiraError for anything that the user can mend, before anything is measured; and with
    `require_quiet` after all was written, if the machine was not quiet.
    """
    precision = request.precision or default_precision(request.target)
    peers = _peers(request)
    check_request(request)
    if request.submit is not None:
        raise LiraError("--submit says what all engines do: add --all")
    engines = f"{request.target}-{precision}"
    folder = request.output or Path(f"bench-{request.bundle.resolve().name}-{request.task}-{engines}")
    output.check(folder, request.overwrite)
    images = find_images(request.images)
    for image in images:
        open_image(image)
    progress("opening the engines")
    found, typical = _measure(request, precision, images, progress)
    if peers:
        first = images[0]
        results = compare(
            request.bundle,
            request.target,
            precision,
            peers,
            folder / "peers",
            threads=request.threads,
            prompt_tokens=request.peer_rows,
            progress=progress,
            checkpoint=request.checkpoint,
            image=first if isinstance(first, Path) else None,
        )
        found["peers"] = {"results": [one.as_dict() for one in results], "table": table(results)}
    progress("drawing")
    output.write(folder, found, typical)
    if request.require_quiet:
        loads = [found["load"]["text"]]
        loads += (
            [one["load"] for one in found["peers"]["results"] if one["status"] == "measured"] if peers else []
        )
        require_quiet(loads, folder)
    return Result(found, typical, folder)


def _peers(request: Request) -> list[str]:
    return list(PEERS) if request.peer == ("all",) else list(request.peer)


def check_request(request: Request) -> None:
    """Raise LiraError for options that are wrong whatever the bundle is."""
    peers = _peers(request)
    if request.task not in TASKS:
        raise LiraError(f"--task is {request.task!r}, expected one of {', '.join(TASKS)}")
    check_tiles("max_tiles", request.max_tiles)
    peers_named(peers)
    if peers:
        check_target(request.target)
    if peers and request.max_tiles is not None:
        raise LiraError("--max-tiles and --peer: peers get the bundle's own number of tiles, leave one out")


def _measure(
    request: Request, precision: str, images: list[Path | Image], progress: Progress
) -> tuple[dict[str, Any], Run]:
    """Return the record, without the peers, and the typical run."""
    bundle = Bundle.open(request.bundle)
    forced = is_forced(request, bundle)
    variants: list[dict[str, Any]] | None = None
    with open_card(request.target in TARGETS and TARGETS[request.target].on_gpu) as card:
        before = _idle(card)
        if request.require_quiet:
            require_quiet_now(before[0], CardLoad(before[1]) if card.on_gpu else None, card.note)
        with Lira.open(
            request.bundle,
            request.target,
            precision,
            request.threads,
            draft=request.draft,
            driver=request.driver,
        ) as lira:
            warn(lira.engines.remark)
            recorder = Recorder()
            engines = lira.engines = recorded(lira.engines, recorder)
            asked = _question(lira, request, request.task, "auto", forced)
            for number in range(request.warmup):
                progress(f"warming up, {number + 1} of {request.warmup}")
                measure(lira, recorder, images[0], asked)
            runs: list[Run] = []
            rounds = [image for _ in range(request.runs) for image in images]
            first = load.reading()
            with card.watch():
                for number, image in enumerate(rounds):
                    progress(f"run {number + 1} of {len(rounds)}")
                    runs.append(measure(lira, recorder, image, asked))
            peak = peak_rss_mib()  # before the ablation and what the report itself takes
            if request.ablation:
                variants = _ablation(lira, engines, recorder, request, rounds, progress)
            during = load.between(first, load.reading())
            after = _idle(card)
            beside = CardLoad(before[1], card.watched.others, after[1]) if card.on_gpu else None
            quiet = Quiet(before[0], during, after[0], beside)
    progress("measuring the memory's bandwidth")
    found = record(
        runs,
        asked,
        manifest=bundle.manifest,
        target=request.target,
        precision=precision,
        threads=request.threads,
        cuda_calls=lira.engines.cuda_calls,
        warmup=request.warmup,
        machine=this_machine(),
        peak_rss_mib=peak,
        quiet=quiet,
        traffic=_traffic(bundle, request, precision, decode_context(runs), card.on_gpu),
        card=card.record(len(runs)),
    )
    if variants is not None:
        found["ablation"] = variants
    return found, typical(runs)


def _idle(card: Card) -> tuple[load.Load | None, float | None]:
    """Return the load of the cores, and of the card, while this process waits."""
    if card.on_gpu and card.sensors is not None:
        return load.idle_load(IDLE_SECONDS), card.busy()
    return load.idle_load(), None


def _traffic(bundle: Bundle, request: Request, precision: str, context: float, on_gpu: bool) -> Traffic:
    """Return what a decode step with `context` cache rows reads. Call it when the engines are closed: it
    needs a gigabyte of the memory that they were in."""
    graph = traffic.llm_file(bundle, request.target, precision)
    weights = traffic.weight_bytes(graph)
    cache = traffic.cache_bytes(graph, bundle.manifest.model, context)
    if not on_gpu:
        return Traffic(weights, cache, read_bandwidth())
    try:
        return Traffic(weights, cache, copy_bandwidth(open_driver(request.driver)), "card")
    except LiraError as error:  # the answers are measured: their figures are not lost for this one
        return Traffic(weights, cache, None, "card", str(error))


def is_forced(request: Request, bundle: Bundle) -> bool:
    """Return whether tokens are given: random weights would neither name a mask nor stop."""
    return request.forced or bool(bundle.manifest.provenance.get("synthetic"))


def typical(runs: list[Run]) -> Run:
    """Return the run with the median total (of two in the middle, the faster one)."""
    return sorted(runs, key=lambda one: one.total)[(len(runs) - 1) // 2]


def find_images(path: Path | None) -> list[Path | Image]:
    """Return the image at `path`, the images of the folder `path` sorted by name, or a generated image.

    Raises LiraError for a path that is neither, or a folder without images.
    """
    if path is None:
        return [sample_image()]
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise LiraError(f"{path} is neither an image nor a folder of images")
    found: list[Path | Image] = [
        file for file in sorted(path.iterdir()) if file.suffix.lower() in SUFFIXES and file.is_file()
    ]
    if not found:
        raise LiraError(f"{path} holds no images; expected some of {', '.join(SUFFIXES)}")
    return found


def _question(lira: Lira, request: Request, task: str, ilvc: Ilvc, forced: bool) -> Question:
    expression = request.expression if task == request.task and request.expression else EXPRESSIONS[task]
    return question(lira, task, expression, ilvc, forced, request.max_tiles)


def _ablation(
    lira: Lira,
    engines: Engines,
    recorder: Recorder,
    request: Request,
    rounds: list[Path | Image],
    progress: Progress,
) -> list[dict[str, Any]]:
    """Measure all variants in turn, round by round, with given tokens."""
    runs: dict[str, list[Run]] = {variant.name: [] for variant in VARIANTS}
    for number, image in enumerate(rounds):
        for variant in VARIANTS:
            progress(f"ablation, round {number + 1} of {len(rounds)}: {variant.title}")
            lira.engines = variant.change(engines, recorder) if variant.change else engines
            asked = _question(lira, request, variant.task or request.task, variant.ilvc, forced=True)
            runs[variant.name].append(measure(lira, recorder, image, asked))
    lira.engines = engines
    return ablation(runs)
