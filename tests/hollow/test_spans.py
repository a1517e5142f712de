"""What bench records of an answer on a GPU: every stage's spans, in number and order, and what they read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from lira_bench.forced import PHRASES
from lira_bench.sample_image import sample_image
from lira_bench.speed.measure import Run, measure, question
from lira_bench.speed.record import STAGES, Recorder, recorded
from lira_engine import Bundle
from lira_runtime import Lira

TASKS = ("refseg", "gcg", "vqa")
ANSWER = (*STAGES[:6], "region_encode", "region_prefill")
"""The order in which an answer with regions first comes to each stage, masks aside."""


def measured(bundle: Path, target: str, precision: str, task: str) -> Run:
    """bench's answer to a task, with given tokens."""
    expression = "the orange star" if task == "refseg" else "What is there?" if task == "vqa" else None
    with Lira.open(bundle, target, precision) as lira:
        recorder = Recorder()
        lira.engines = recorded(lira.engines, recorder)
        return measure(lira, recorder, sample_image(), question(lira, task, expression, "auto", forced=True))


def read_first(run: Run) -> int:
    """Rows of the first pass of the language model: the text before the image, and the image."""
    return next(span.rows for span in run.spans if span.rows)


def passes(run: Run, image_rows: int) -> list[tuple[str, int, int]]:
    """Stage, rows that were read and rows in the cache, by span, as if the image had `image_rows` fewer."""
    first = next(span for span in run.spans if span.rows)
    return [
        (
            span.stage,
            span.rows - image_rows * (span is first),
            span.context - image_rows * (span.context > 0),
        )
        for span in run.spans
    ]


@pytest.mark.parametrize("task", TASKS)
def test_spans_are_those_of_the_portable_graphs(built: Callable[[str], Path], task: str) -> None:
    """The same answer by the portable graphs on the CPU runs the same stages in the same order over the same
    rows. Zeros name no valid query, so the image has fewer rows."""
    bundle = built("fp16")
    ours, portable = measured(bundle, "cuda", "fp16", task), measured(bundle, "portable", "fp32", task)
    valid = read_first(portable) - read_first(ours)
    assert 0 < valid <= Bundle.open(bundle).manifest.model.num_queries
    assert passes(ours, 0) == passes(portable, valid)
    marks = [[(mark.kind, mark.text) for mark in run.marks] for run in (ours, portable)]
    assert marks[0] == marks[1]
    assert ours.new_tokens == portable.new_tokens and ours.masks == portable.masks


def test_every_stage_has_its_spans_in_the_order_of_an_answer(built: Callable[[str], Path]) -> None:
    run = measured(built("fp16"), "cuda", "fp16", "gcg")
    stages = [span.stage for span in run.spans]
    counts = Counter(stages)
    assert [key for key in dict.fromkeys(stages) if key != "pixel_decoder"] == [
        stage for stage in ANSWER if stage != "pixel_decoder"
    ]
    assert [counts[stage] for stage in ("preprocess", "pixel_encoder", "sefe", "prefill")] == [1, 1, 1, 2]
    regions = len(PHRASES)
    assert counts["pixel_decoder"] == run.masks == regions
    assert counts["region_encode"] == counts["region_prefill"] == len(run.regions) == regions
    assert all(span.seconds >= span.earlier >= 0 for span in run.spans)
