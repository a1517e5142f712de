"""Compare recipes for lira-nano with its fp32 engines: accuracy, size and speed.

    python benchmarks/compare_recipes.py BUNDLE --work WORK --markdown docs/calibrate.md

Calibrates each recipe on scenes of one seed, builds it for the CPU, asks about unseen scenes of another seed,
and times all engines in turns. Everything is kept in WORK: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from lira_bench.accuracy.items import Dataset, Evaluation, Source
from lira_bench.accuracy.resampling import LEVEL, counts, difference, ratio
from lira_bench.accuracy.run import evaluate
from lira_bench.accuracy.tasks import task_named
from lira_bench.accuracy.worker import EngineChoice, Job
from lira_bench.reproduce import parser_line
from lira_bench.speed.measure import Question, question
from lira_calib.calibrate import Request, calibrate
from lira_engine.build import build
from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.record import read_build
from lira_engine.engines.usable import usable_build
from lira_engine.errors import LiraError
from lira_engine.system.atomic import atomic_directory, atomic_write
from lira_engine.system.cores import default_threads
from lira_engine.system.machine import cpu_name, usable_cores
from lira_engine.targets import target_named
from lira_nano.dataset import write_dataset
from lira_nano.scenes import TRAINING_SEED
from lira_runtime import Lira
from lira_runtime.answer import last_answer
from lira_runtime.sampling import make_sampler

SEED, CALIBRATION_SEED = 2, 3
assert len({SEED, CALIBRATION_SEED, TRAINING_SEED}) == 3
SCENES, CALIBRATION_SCENES, EXPRESSIONS = 300, 64, 2
BUDGET = "cIoU -0.5%"
BEGIN, END = "<!-- compare_recipes: begin -->", "<!-- compare_recipes: end -->"
TASKS = ("refseg", "attreval", "gcg")
COLUMNS = (  # title, task, metric of resampling.counts
    ("RefSeg cIoU", "refseg", "ciou"),
    ("paired VQA", "attreval", "paired"),
    ("GCG recall", "gcg", "recall"),
)
ROUNDS, TIMED_SCENES = 5, 4


@dataclass(frozen=True)
class Row:
    """A line of the table. `options`: of the calibration; None for the engines without a recipe."""

    title: str
    name: str
    options: Mapping[str, Any] | None

    @property
    def precision(self) -> str:
        return "fp32" if self.options is None else "mixed"


ROWS = (
    Row("fp32", "fp32", None),
    Row("int8 vision", "int8-vision", {"vision": "int8", "llm": "float"}),
    Row("int8 everything", "int8", {"vision": "int8", "llm": "int8"}),
    Row(
        "int4 language model, nearest", "int4-nearest", {"vision": "float", "llm": "int4", "int4": "nearest"}
    ),
    Row("int4 language model, GPTQ", "int4-gptq", {"vision": "float", "llm": "int4", "int4": "gptq"}),
    Row("int4 language model, AWQ", "int4-awq", {"vision": "float", "llm": "int4", "int4": "awq"}),
    Row(f'mixed, `--budget "{BUDGET}"`', "mixed", {"budget": BUDGET}),
)


@dataclass(frozen=True)
class Timing:
    """Medians of one engine, and of their ratios to fp32 in the same round."""

    prefill: float
    ttft: float
    decode_per_s: float
    ratios: tuple[float, float, float]


def engines(bundle: Path, row: Row, work: Path, scenes: int, threads: int | None) -> Path:
    """Return a copy of the bundle with the engines of a row."""
    own = work / "bundles" / row.name
    if not own.is_dir():
        with atomic_directory(own, marker=None) as partial:
            # onnx-ir takes hard links for an attack.
            shutil.copytree(bundle, partial, ignore=shutil.ignore_patterns("engines"), dirs_exist_ok=True)
    if row.options is None:
        build(own, "cpu", "fp32", threads=threads)
        return own
    recipe = work / "recipes" / row.name
    if not recipe.is_dir():
        data = _scenes(work / "calibration", CALIBRATION_SEED, scenes)
        held_out = max(scenes // 4, 1)
        request = Request(
            bundle, recipe, data / "images", (data,), scenes=scenes - held_out, held_out=held_out,
            threads=threads, **row.options,
        )  # fmt: skip
        calibrate(request)
    try:
        usable_build(Bundle.open(own), target_named("cpu"), "mixed")
    except LiraError:
        build(own, "cpu", recipe=recipe, threads=threads, force=True)  # the table shows what a gate refuses
    return own


def _scenes(folder: Path, seed: int, count: int) -> Path:
    if not folder.is_dir():
        write_dataset(folder, seed, count)
    return folder


def evaluations(
    bundles: Mapping[str, Path], data: Path, work: Path, threads: int | None
) -> dict[str, dict[str, Evaluation]]:
    """Return the evaluations by row and task. Answers to GCG's question are also read teacher-forced."""
    found: dict[str, dict[str, Evaluation]] = {name: {} for name in bundles}
    for task in TASKS:
        source = Source(data)
        dataset = _asked(task, task_named(task).read(source))
        first = None
        for name, bundle in bundles.items():
            precision = "fp32" if first is None else "mixed"
            job = Job(EngineChoice(bundle, "cpu", precision), task, data / "images", threads=threads)
            out = work / "evaluations" / f"{task}-{name}"
            compared: Evaluation | None = first if task == "gcg" else None
            found[name][task] = evaluate(job, source, dataset, out, compared_with=compared)
            first = first or found[name][task]
            print(f"{task} {name} is evaluated", file=sys.stderr)
    return found


def _asked(task: str, dataset: Dataset) -> Dataset:
    """Leave out attreval's expressions, which refseg asks about, and all but some expressions of a scene."""
    kept, of_image = [], dict[str, int]()
    for item in dataset.items:
        of_image[item.image] = of_image.get(item.image, 0) + 1
        if not item.words and (task != "refseg" or of_image[item.image] <= EXPRESSIONS):
            kept.append(item)
    return replace(dataset, entries=tuple(kept))


def timings(bundles: Mapping[str, Path], data: Path, rounds: int, threads: int | None) -> dict[str, Timing]:
    """Time one grounded answer per scene with each engine, in turns; all of them read the same tokens."""
    images = sorted((data / "images").iterdir())[:TIMED_SCENES]
    samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in bundles}
    with ExitStack() as opened:
        open_ones = {}
        for name, bundle in bundles.items():
            precision = "fp32" if name == ROWS[0].name else "mixed"
            open_ones[name] = opened.enter_context(Lira.open(bundle, "cpu", precision, threads))
        asked = {name: question(lira, "gcg", None, "auto", True) for name, lira in open_ones.items()}
        for name, lira in open_ones.items():
            _answer(lira, images[0], asked[name])  # warms up
        names = list(bundles)
        for turn in track(range(rounds * len(images)), "rounds", transient=True):
            at = turn % len(names)
            for name in (*names[at:], *names[:at]):
                samples[name].append(_answer(open_ones[name], images[turn % len(images)], asked[name]))
    first = np.array(samples[names[0]])
    found = {}
    for name, of_name in samples.items():
        prefill, ttft, decode = np.median(of_name, axis=0)
        ratios = np.median(np.array(of_name) / first, axis=0)
        found[name] = Timing(float(prefill), float(ttft), float(decode), tuple(ratios.tolist()))
    return found


def _answer(lira: Lira, image: Path, asked: Question) -> tuple[float, float, float]:
    """Return the seconds of the prefill, those to the first token, and decode steps per second."""
    assert asked.forced is not None
    forced = dict(enumerate(asked.forced))
    scene = lira.look(image)
    answer = last_answer(scene.stream_prompt(asked.prompt, make_sampler(), forced=forced))
    times = answer.timings
    return times.prefill, times.ttft, times.decode_tokens_per_second


def _quick(options: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    return {**options, "sensitivity": "stages"} if options and "budget" in options else options


def size_mib(bundle: Path, precision: str) -> float:
    record = read_build(Bundle.open(bundle).engine_folder("cpu", precision), "build again")
    return sum(entry.bytes for entry in record.files.values()) / 2**20


def table(
    rows: Sequence[Row],
    bundles: Mapping[str, Path],
    found: Mapping[str, Mapping[str, Evaluation]],
    timed: Mapping[str, Timing],
) -> str:
    """Return the table in Markdown."""
    head = ["engines", "MiB", "prefill, ms", "TTFT, ms", "decode, tok/s"]
    lines = [
        [*head, *(title for title, *_ in COLUMNS), "equal tokens", "mask IoU"],
        ["---", *["---:"] * (len(head) + len(COLUMNS) + 1)],
    ]
    first = rows[0].name
    for row in rows:
        time = timed[row.name]
        plain = row.name == first
        values = (f"{1e3 * time.prefill:.1f}", f"{1e3 * time.ttft:.1f}", f"{time.decode_per_s:.0f}")
        times = [
            value if plain else f"{value} ({part:.2f})"
            for value, part in zip(values, time.ratios, strict=True)
        ]
        metrics = [
            _rated(found[row.name][task], found[first][task], metric, plain) for _, task, metric in COLUMNS
        ]
        agreement = ["", ""]
        if not plain:
            of_gcg = found[row.name]["gcg"]
            tokens, masks = ratio(counts(of_gcg, "tokens")), ratio(counts(of_gcg, "masks"))
            agreement = [f"{100 * tokens:.2f} %", f"{masks:.4f}"]
        size = f"{size_mib(bundles[row.name], row.precision):.1f}"
        lines.append([row.title, size, *times, *metrics, *agreement])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _rated(other: Evaluation, first: Evaluation, metric: str, plain: bool) -> str:
    """Return the metric in percent; behind it the difference to the first engines in points, and its
    interval."""
    now = counts(other, metric)
    if plain:
        return f"{100 * ratio(now):.2f} %"
    to_first = difference(now, counts(first, metric))
    low, high = 100 * to_first.low, 100 * to_first.high
    return f"{100 * to_first.value:+.2f} [{low:+.2f}, {high:+.2f}]"


def section(asked: argparse.Namespace, written: str, found: Mapping[str, Mapping[str, Evaluation]]) -> str:
    """Return the table with what it was measured on."""
    of_first = found[ROWS[0].name]
    asked_about = ", ".join(
        f"{len(of_first[task].records)} {what}"
        for task, what in zip(TASKS, ("expressions", "pairs of questions", "grounded captions"), strict=True)
    )
    threads = asked.threads or default_threads() or usable_cores()
    answers = asked.rounds * min(TIMED_SCENES, asked.scenes)
    return f"""\
{BEGIN}

{asked.scenes} scenes of seed {SEED}: {asked_about}. Calibrated on {asked.calibration_scenes} scenes of seed
{CALIBRATION_SEED}, a quarter of them held out; lira-nano was trained on seed {TRAINING_SEED}. {cpu_name()},
{threads} threads. Times are medians over {answers} grounded answers with the same
tokens, all engines in turns, with the ratio to fp32 in brackets. Accuracy of the recipes is the difference to
fp32 in points, with the {100 * LEVEL:.0f} % interval from resampling the scenes.

{written}

{END}"""


def put_into(page: Path, text: str) -> None:
    """Replace what stands between the markers of a page. Raises SystemExit if it has none."""
    content = page.read_text(encoding="utf-8")
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{page} has no lines {BEGIN} and {END}")
    with atomic_write(page) as file:
        file.write(f"{before}{text}{after}".encode())


def measure(asked: argparse.Namespace, rows: Sequence[Row] = ROWS) -> str:
    """Return the section of the page; see `main` for the arguments."""
    work: Path = asked.work
    work.mkdir(parents=True, exist_ok=True)
    data = _scenes(work / "scenes", SEED, asked.scenes)
    bundles = {}
    for row in rows:
        bundles[row.name] = engines(asked.bundle, row, work, asked.calibration_scenes, asked.threads)
        print(f"{row.name} is built", file=sys.stderr)
    found = evaluations(bundles, data, work, asked.threads)
    timed = timings(bundles, data, asked.rounds, asked.threads)
    return section(asked, table(rows, bundles, found, timed), found)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    made.add_argument("bundle", type=Path)
    made.add_argument("--work", type=Path, default=Path("compare-recipes"))
    made.add_argument("--scenes", type=int, default=SCENES)
    made.add_argument("--calibration-scenes", type=int, default=CALIBRATION_SCENES)
    made.add_argument("--rounds", type=int, default=ROUNDS)
    made.add_argument("--threads", type=int)
    made.add_argument("--markdown", type=Path, help="page whose section is replaced")
    made.add_argument("--quick", action="store_true", help="few scenes: shows that it runs, measures nothing")
    return made


def main(rows: Sequence[Row] = ROWS) -> None:
    arguments = parser()
    asked = arguments.parse_args()
    line = parser_line("python benchmarks/compare_recipes.py", arguments, asked, "bundle")
    if asked.quick:
        asked.scenes, asked.calibration_scenes, asked.rounds = 2, 8, 1
        rows = [replace(row, options=_quick(row.options)) for row in rows]
    text = measure(asked, rows)
    print(text)
    if asked.markdown:
        put_into(asked.markdown, text)
    # Not on the standard output, which is the section.
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
