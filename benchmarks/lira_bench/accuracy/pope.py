"""POPE: is an object in the image? Accuracy and F1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lira_bench.accuracy.files import Annotations, need_text, read_lines, short
from lira_bench.accuracy.items import Dataset, Entry, Item, LeftOut, Metrics, Record, Source, Task, rounded
from lira_bench.accuracy.protocol import STRICT, Protocol
from lira_bench.accuracy.text_answers import pope_says_yes
from lira_bench.accuracy.vqa import ask
from lira_bench.metrics import BinaryScore, says_yes
from lira_engine.errors import LiraError

if TYPE_CHECKING:
    from lira_runtime import Answer

FILES = ("pope.jsonl", "*pope*.json*")


def read(source: Source) -> Dataset:
    """Return an item per JSON line: image, text (the question) and label (yes or no). Questions that share a
    `question_id` (in a file joined from POPE's three) are left out."""
    files = Annotations(source.data)
    path = files.find(*FILES)
    entries = read_lines(files.lines(path), lambda key, line: _entry(key, line, source.instruction))
    return Dataset(tuple(entries[: source.limit]), files.hashes)


def _entry(key: str, line: dict[str, Any], instruction: str | None) -> Entry:
    try:
        image, text = need_text(line, "image"), need_text(line, "text")
        label = need_text(line, "label").strip().lower()
        if label not in ("yes", "no"):
            raise LiraError(f"key 'label' is {short(label)}, expected yes or no")
    except LiraError as error:
        return LeftOut(key, str(error))
    truth: dict[str, Any] = {"yes": label == "yes"}
    if isinstance(line.get("category"), str):
        truth["category"] = line["category"]
    there = instruction is not None and text.endswith(instruction)  # as in LLaVA's version of POPE's file
    return Item(key, image, (ask(text, None if there else instruction),), truth)


def judge(
    item: Item, answers: Sequence[Answer], masks: Sequence[np.ndarray], protocol: Protocol = STRICT
) -> dict[str, Any]:
    """Return `yes` by POPE's rule, by which all but a no is a yes, and `clear` by the first word."""
    text = answers[0].text
    yes = pope_says_yes(text, blanks_only=protocol.answers != "lenient")
    return {"yes": yes, "truth": item.truth["yes"], "clear": says_yes(text) is not None}


def total(scored: Sequence[tuple[Item, Record]], protocol: Protocol = STRICT) -> Metrics:
    """Return accuracy, the precision, recall and F1 of yes, and the number of unclear answers; if the lines
    have categories, also CATEGORY.accuracy and CATEGORY.f1, as POPE reports them."""
    score = BinaryScore()
    categories: dict[str, BinaryScore] = {}
    for item, record in scored:
        category = item.truth.get("category")
        of_category = [] if category is None else [categories.setdefault(category, BinaryScore())]
        for one in (score, *of_category):
            one.add(record["scores"]["yes"], record["scores"]["truth"])
    totals: Metrics = _rates(score, ("accuracy", "f1", "precision", "recall", "yes_share"))
    totals["questions"] = score.count
    totals["unclear"] = sum(not record["scores"]["clear"] for _, record in scored)
    for category, one in categories.items():
        totals |= {f"{category}.{name}": rate for name, rate in _rates(one, ("accuracy", "f1")).items()}
    return totals


def _rates(score: BinaryScore, names: Sequence[str]) -> Metrics:
    """Return rounded rates; None for a nan, which means that there was nothing to rate."""
    rates = {name: getattr(score, name) for name in names}
    return {name: None if rate != rate else rounded(rate) for name, rate in rates.items()}


TASK = Task("pope", read, judge, total, FILES, short_answers=True)
