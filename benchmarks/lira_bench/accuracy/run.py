"""Run one evaluation from its data to its report, in this process or over Ray; continue a stopped one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lira_bench.accuracy import ray_workers
from lira_bench.accuracy.compare import comparison
from lira_bench.accuracy.files import identity
from lira_bench.accuracy.items import Dataset, Evaluation, LeftOut, Record, Source
from lira_bench.accuracy.output import START_ANEW, Output
from lira_bench.accuracy.tasks import task_named
from lira_bench.accuracy.worker import EngineChoice, Group, Job, Worker, grouped, left_out
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.integrity import sha256_of
from lira_engine.bundle.manifest import MANIFEST_NAME
from lira_engine.engines.record import read_build
from lira_engine.errors import LiraError
from lira_engine.targets import target_named

Progress = Callable[[int, int], None]
"""Called with (items done, items in all)."""


def evaluate(
    job: Job,
    source: Source,
    dataset: Dataset,
    out: Path,
    *,
    overwrite: bool = False,
    workers: str | None = None,  # "ray", or this process
    progress: Progress = lambda done, total: None,
    compared_with: Evaluation | None = None,
) -> Evaluation:
    """Ask about the items that `out` has no record of, and write samples.jsonl and report.json there.

    `compared_with`: an evaluation whose answers these engines also read (teacher-forced), if both have the
    same tokenizer. Raises LiraError as Output does, for answers in `out` about other pictures than those of
    `job`, if engines fail, and if no item could be evaluated.
    """
    if not dataset.items:
        raise LiraError(_nothing(source, dataset, _left_out(dataset, {})))
    run = describe(job, source, dataset)
    references = None
    if compared_with is not None:
        same_tokens = run["bundle"]["tokenizer"] == compared_with.run["bundle"]["tokenizer"]
        references = compared_with.records if same_tokens else None
        run["compared_with"] = compared_with.run
    with Output(out, run, overwrite) as output:
        other = _replaced(output.records, job.images)
        if other:
            raise LiraError(f"{out} holds answers about other pictures: {_names(other)}; {START_ANEW}")
        lost = _ask(job, dataset, output, workers, references, progress)
        other = _replaced(output.records, job.images)
        if other:
            output.forget(other)
            again = "run the same command again, it asks about them anew"
            raise LiraError(f"pictures were replaced while they were asked about: {_names(other)}; {again}")
        evaluation = _summed_up(job, run, dataset, output.records, lost)
        if not evaluation.records:
            raise LiraError(_nothing(source, dataset, evaluation.left_out))
        report = {
            "counts": evaluation.counts,
            "metrics": evaluation.metrics,
            "images": _pictures(evaluation.records),
            "left_out": evaluation.left_out,
        }
        if compared_with is not None:
            report["comparison"] = comparison(compared_with, evaluation)
        output.finish(_samples(evaluation), report)
    return evaluation


def _nothing(source: Source, dataset: Dataset, left_out: Sequence[dict[str, str]]) -> str:
    """Return the message for an evaluation without answers."""
    if not dataset.entries:
        return f"{', '.join(dataset.files)}: there are no entries, so there is nothing to evaluate"
    limit = "" if source.limit is None else f" (--limit {source.limit})"
    first = "".join(f"; {entry['item']}: {entry['reason']}" for entry in left_out[:1])
    return f"none of {len(dataset.entries)} entries{limit} could be evaluated{first}"


def _replaced(records: dict[str, Record], images: Path) -> list[str]:
    """Return the names of images whose file is another one than that of the records."""
    asked: dict[str, set[str]] = {}
    for record in records.values():
        asked.setdefault(record["image"], set()).add(record["image_sha256"])
    return [name for name, known in asked.items() if known != {identity(images / name)}]


def _names(images: Sequence[str]) -> str:
    more = f" and {len(images) - 1} more" if len(images) > 1 else ""
    return f"{images[0]}{more}"


def _pictures(records: dict[str, Record]) -> dict[str, Any]:
    """Return the number of pictures and their hash: reports with the same hash are about the same ones."""
    known = {record["image"]: record["image_sha256"] for record in records.values()}
    return {
        "count": len(known),
        "sha256": hashlib.sha256(json.dumps(sorted(known.items())).encode()).hexdigest(),
    }


def _samples(evaluation: Evaluation) -> list[Record]:
    """Return all records in the order of the data."""
    reasons = {entry["item"]: entry["reason"] for entry in evaluation.left_out}
    return [
        evaluation.records[entry.key]
        if entry.key in evaluation.records
        else left_out(entry.key, reasons[entry.key])
        for entry in evaluation.dataset.entries
    ]


def describe(job: Job, source: Source, dataset: Dataset) -> dict[str, Any]:
    """Return what the result depends on: no paths, threads or workers."""
    engines = job.engines
    bundle = Bundle.open(engines.bundle)
    return {
        "task": job.task,
        "bundle": {
            "name": bundle.manifest.name,
            "sha256": sha256_of(bundle.path / MANIFEST_NAME),
            "tokenizer": sha256_of(bundle.tokenizer_file),
        },
        "target": engines.target,
        "precision": engines.precision,
        "engines": _engines_hash(bundle, engines),
        "lira_edge_version": metadata.version("lira-edge"),
        "protocol": job.protocol.as_dict(),
        "ilvc": job.protocol.ilvc,
        "limit": source.limit,
        "split": source.split,
        "instruction": source.instruction,
        "data": dict(sorted(dataset.files.items())),
    }


def _engines_hash(bundle: Bundle, engines: EngineChoice) -> str | None:
    """Return a SHA-256 over the hashes of the built files; None for the portable graphs, which the bundle's
    hash covers."""
    if engines.target == "portable":
        return None
    mend = f"run `{target_named(engines.target).build_command(bundle.path, engines.precision)}`"
    build = read_build(bundle.engine_folder(engines.target, engines.precision), mend)
    files = {name: entry.sha256 for name, entry in sorted(build.files.items())}
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _ask(
    job: Job,
    dataset: Dataset,
    output: Output,
    workers: str | None,
    references: dict[str, Record] | None,
    progress: Progress,
) -> dict[str, str]:
    """Ask about the items without a record. Returns the reasons for left out items, by key."""
    missing = [item for item in dataset.items if item.key not in output.records]
    done, lost = len(dataset.items) - len(missing), {}
    progress(done, len(dataset.items))
    groups = grouped(missing, references)
    if groups:
        answering = ray_workers.records(job, groups) if workers == "ray" else _in_this_process(job, groups)
        for record in answering:
            output.append(record)
            if "left_out" in record:
                lost[record["item"]] = record["left_out"]
            done += 1
            progress(done, len(dataset.items))
    return lost


def _in_this_process(job: Job, groups: Sequence[Group]) -> Iterator[Record]:
    with Worker(job) as worker:
        for group in groups:
            yield from worker.records(group)


def _summed_up(
    job: Job, run: dict[str, Any], dataset: Dataset, records: dict[str, Record], lost: dict[str, str]
) -> Evaluation:
    missing = _left_out(dataset, lost)
    scored = [(item, records[item.key]) for item in dataset.items if item.key in records]
    counts = {"entries": len(dataset.entries), "evaluated": len(scored), "left_out": len(missing)}
    return Evaluation(
        run, task_named(job.task).total(scored, job.protocol), counts, missing, dataset, records
    )


def _left_out(dataset: Dataset, lost: dict[str, str]) -> list[dict[str, str]]:
    """Return what the readers and the workers (`lost`: reasons by key) left out, in the data's order."""
    reasons = {entry.key: entry.reason for entry in dataset.entries if isinstance(entry, LeftOut)} | lost
    return [{"item": e.key, "reason": reasons[e.key]} for e in dataset.entries if e.key in reasons]
