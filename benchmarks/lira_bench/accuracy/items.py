"""What an evaluation is made of: items to ask about, entries that were left out, and what a task brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lira_bench.accuracy.protocol import Protocol
    from lira_runtime import Answer

Record = dict[str, Any]
"""A line of samples.jsonl: an item's key, image, answers and scores; or its key and why it was left out."""

Metrics = dict[str, float | int | None]
"""A task's totals by name. Rates are floats, None where there was nothing to rate; counts are integers."""


@dataclass(frozen=True)
class Question:
    """`text` is what the bundle's `task` is asked about; None where the task has its own question."""

    task: str
    text: str | None = None


@dataclass(frozen=True)
class Item:
    """One thing to score: an expression, a grounded caption, a question or a pair of them.

    `masks` holds one segmentation per true mask, as it stands in the file (see segmentation.decode); `size`
    is the image's (height, width) as the annotations give it, where they do. `words` are to be ranked at the
    first mask. `truth` is the task's own.
    """

    key: str  # its place in the annotation file: "refs.json[3].sentences[0]", "vqa.jsonl:12"
    image: str  # name below the images folder
    questions: tuple[Question, ...]
    truth: Mapping[str, Any]
    masks: tuple[Any, ...] = ()
    size: tuple[int, int] | None = None
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """An entry that could not be evaluated."""

    key: str
    reason: str


Entry = Item | LeftOut


@dataclass(frozen=True)
class Source:
    """Where a task's data is and how much of it is wanted."""

    data: Path  # folder, or the annotation file itself
    split: str | None = None
    limit: int | None = None
    instruction: str | None = None  # appended to questions that expect a short answer


@dataclass(frozen=True)
class Dataset:
    """Entries in the files' order; `files` holds the SHA-256 of every annotation file by name."""

    entries: tuple[Entry, ...]
    files: dict[str, str] = field(default_factory=dict)

    @property
    def items(self) -> list[Item]:
        return [entry for entry in self.entries if isinstance(entry, Item)]


@dataclass(frozen=True)
class Evaluation:
    """What came of it. `records` by key, without those that were left out."""

    run: dict[str, Any]
    metrics: Metrics
    counts: dict[str, int]
    left_out: list[dict[str, str]]  # item, reason
    dataset: Dataset
    records: dict[str, Record]

    @property
    def scored(self) -> list[tuple[Item, Record]]:
        """The evaluated items in the data's order."""
        return [(item, self.records[item.key]) for item in self.dataset.items if item.key in self.records]


@dataclass(frozen=True)
class Task:
    """How a kind of data is read, scored item by item, and summed up.

    `judge(item, answers, masks, protocol)` gets one answer per question and the true masks [H, W] bool, and
    returns what goes into the item's record as "scores". `total(scored, protocol)` gets the scored items in
    the files' order.
    """

    name: str
    read: Callable[[Source], Dataset]
    judge: Callable[[Item, Sequence[Answer], Sequence[np.ndarray], Protocol], dict[str, Any]]
    total: Callable[[Sequence[tuple[Item, Record]], Protocol], Metrics]
    short_answers: bool = False  # takes Source.instruction
    has_splits: bool = False  # takes Source.split


def rounded(value: float, digits: int = 6) -> float:
    """Of counts, six digits. Of what an engine computed, four: more differ with the number of threads."""
    return round(float(value), digits)


def mean(values: Sequence[float]) -> float | None:
    """None for no values."""
    return rounded(sum(values) / len(values)) if values else None
