"""Opens the engines, warms up, measures, and puts together what was found."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from lira_bench.bandwidth import read_bandwidth
from lira_bench.sample_image import sample_image
from lira_bench.speed import traffic
from lira_bench.speed.ablation import VARIANTS, ablation
from lira_bench.speed.measure import Question, Run, measure, question
from lira_bench.speed.record import Recorder, recorded
from lira_bench.speed.schedule import TASKS as TASKS
from lira_bench.speed.summary import Traffic, decode_context, record
from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.runner import Engines
from lira_engine.errors import LiraError
from lira_engine.system.machine import peak_rss_mib, this_machine
from lira_runtime import Lira
from lira_runtime.images import open_image

EXPRESSIONS = {"refseg": "the object", "gcg": None, "vqa": "What is in the image?"}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


@dataclass(frozen=True)
class Request:
    """What `lira-edge bench` was asked for."""

    bundle: Path
    target: str
    precision: str
    task: str
    expression: str | None
    images: Path | None
    runs: int
    warmup: int
    threads: int | None
    forced: bool
    ablation: bool
    max_tiles: int | None = None


@dataclass(frozen=True)
class Result:
    """`typical` is the run whose total is the median; `image` the first image that was asked about."""

    record: dict[str, Any]
    typical: Run
    image: Path | None


def run(asked: Request, progress: Callable[[str], None]) -> Result:
    """Measure. Raises LiraError for anything that the user can mend, before anything is measured."""
    pictures = find_images(asked.images)
    for picture in pictures:
        open_image(picture)
    bundle = Bundle.open(asked.bundle)
    # Random weights would neither name a mask nor stop.
    forced = asked.forced or bool(bundle.manifest.provenance.get("synthetic"))
    with Lira.open(asked.bundle, asked.target, asked.precision, asked.threads) as lira:
        recorder = Recorder()
        engines = lira.engines = recorded(lira.engines, recorder)
        main = _question(lira, asked, asked.task, "auto", forced)
        for number in range(asked.warmup):
            progress(f"warming up, {number + 1} of {asked.warmup}")
            measure(lira, recorder, pictures[0], main)
        runs: list[Run] = []
        rounds = [picture for _ in range(asked.runs) for picture in pictures]
        for number, picture in enumerate(rounds):
            progress(f"run {number + 1} of {len(rounds)}")
            runs.append(measure(lira, recorder, picture, main))
        peak = peak_rss_mib()  # before the ablation and what the report itself takes
        variants = _ablation(lira, engines, recorder, asked, rounds, progress) if asked.ablation else None
    progress("measuring the memory's bandwidth")
    graph = traffic.llm_file(bundle, asked.target, asked.precision)
    found = record(
        runs,
        main,
        manifest=bundle.manifest,
        target=asked.target,
        precision=asked.precision,
        threads=asked.threads,
        warmup=asked.warmup,
        machine=this_machine(),
        peak_rss_mib=peak,
        traffic=Traffic(
            traffic.weight_bytes(graph),
            traffic.cache_bytes(bundle.manifest.model, decode_context(runs)),
            read_bandwidth(),
        ),
    )
    if variants is not None:
        found["ablation"] = variants
    first = pictures[0]
    return Result(found, typical(runs), first if isinstance(first, Path) else None)


def typical(runs: list[Run]) -> Run:
    """The run whose total is the median (of two in the middle, the faster one)."""
    return sorted(runs, key=lambda one: one.total)[(len(runs) - 1) // 2]


def find_images(path: Path | None) -> list[Path | Image]:
    """An image, all images of a folder in the order of their names, or a generated one.

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


def _question(lira: Lira, asked: Request, task: str, ilvc: Any, forced: bool) -> Question:
    expression = asked.expression if task == asked.task and asked.expression else EXPRESSIONS[task]
    return question(lira, task, expression, ilvc, forced, asked.max_tiles)


def _ablation(
    lira: Lira,
    engines: Engines,
    recorder: Recorder,
    asked: Request,
    rounds: list[Path | Image],
    progress: Callable[[str], None],
) -> list[dict[str, Any]]:
    """All variants in turn, round by round, their tokens given."""
    runs: dict[str, list[Run]] = {variant.name: [] for variant in VARIANTS}
    for number, picture in enumerate(rounds):
        for variant in VARIANTS:
            progress(f"ablation, round {number + 1} of {len(rounds)}: {variant.title}")
            lira.engines = variant.change(engines, recorder) if variant.change else engines
            task = variant.task or asked.task
            main = _question(lira, asked, task, variant.ilvc, True)
            runs[variant.name].append(measure(lira, recorder, picture, main))
    lira.engines = engines
    return ablation(runs)
