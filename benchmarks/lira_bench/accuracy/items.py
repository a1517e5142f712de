"""The parts of an evaluation: items to ask about, entries that were left out, and tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lira_bench.accuracy.protocol import Protocol
    from lira_runtime import Answer

Record = dict[str, Any]
"""A line of samples.jsonl: an item's key, image, answers and scores; or its key and why it was left out."""

Metrics = dict[str, float | int | None]
"""A task's totals by name. Rates are floats, or None if there was nothing to rate; counts are integers."""


@dataclass(frozen=True)
class Question:
    """A question of the bundle's `task` about `text`; None if the task has its own question."""

    task: str
    text: str | None = None


@dataclass(frozen=True)
class Item:
    """One thing to score: an expression, a grounded caption, a question or a pair of questions.

    Attributes:
        masks: one segmentation per true mask, as in the file (see segmentation.decode).
        size: the image's (height, width), if the annotations give it.
        words: to be ranked at the first mask. truth: what the task's `judge` needs.
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
    """Where a task's data is, and which part of it to evaluate."""

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

    def chosen_by(self, rules: Protocol) -> Dataset:
        """Return the data without the entries that a protocol does not evaluate."""
        entries = self.entries
        if rules.of_many is not None and len(entries) > rules.of_many[0]:
            entries = entries[: rules.of_many[1]]
        if not rules.ranks_words:
            entries = tuple(
                LeftOut(entry.key, f"protocol {rules.name} ranks no words")
                if isinstance(entry, Item) and entry.words
                else entry
                for entry in entries
            )
        return replace(self, entries=entries)


@dataclass(frozen=True)
class Evaluation:
    """The outcome. `records`: by key, without left out items."""

    run: dict[str, Any]
    metrics: Metrics
    counts: dict[str, int]
    left_out: list[dict[str, str]]  # item, reason
    dataset: Dataset
    records: dict[str, Record]

    @property
    def scored(self) -> list[tuple[Item, Record]]:
        """Return the evaluated items in the data's order."""
        return [(item, self.records[item.key]) for item in self.dataset.items if item.key in self.records]


@dataclass(frozen=True)
class Task:
    """How a kind of data is read, judged item by item, and summed up.

    `judge(item, answers, masks, protocol)` gets one answer per question and the true masks, bool [H, W], and
    returns the "scores" of the item's record. `total(scored, protocol)` gets the scored items in the data's
    order and returns the metrics.
    """

    name: str
    read: Callable[[Source], Dataset]
    judge: Callable[[Item, Sequence[Answer], Sequence[np.ndarray], Protocol], dict[str, Any]]
    total: Callable[[Sequence[tuple[Item, Record]], Protocol], Metrics]
    files: tuple[str, ...] = ()  # patterns of its annotation files, as they are published
    short_answers: bool = False  # takes Source.instruction
    has_splits: bool = False  # takes Source.split


def rounded(value: float, digits: int = 6) -> float:
    """Round to `digits`: six for counts, four for what engines compute, which varies with the threads."""
    return round(float(value), digits)


def mean(values: Sequence[float]) -> float | None:
    """Return the rounded mean, None without values."""
    return rounded(sum(values) / len(values)) if values else None
