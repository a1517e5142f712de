"""POPE: is an object there or not; accuracy and F1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lira_bench.accuracy.files import Annotations, need_text, read_lines, short
from lira_bench.accuracy.items import Dataset, Entry, Item, LeftOut, Metrics, Record, Source, Task, rounded
from lira_bench.accuracy.text_answers import pope_says_yes
from lira_bench.accuracy.vqa import ask
from lira_bench.metrics import BinaryScore, says_yes
from lira_engine.errors import LiraError

if TYPE_CHECKING:
    from lira_runtime import Answer


def read(source: Source) -> Dataset:
    """JSON lines, whatever the file's ending: image, text (the question) and label (yes or no). Questions
    that share a `question_id` (the three files of POPE in one) are left out."""
    files = Annotations(source.data)
    path = files.find("pope.jsonl", "*pope*.json*")
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
    return Item(key, image, (ask(text, instruction),), {"yes": label == "yes"})


def judge(item: Item, answers: Sequence[Answer], masks: Sequence[np.ndarray]) -> dict[str, Any]:
    """`yes` by POPE's own rule, which takes all that is not a no for a yes; `clear` by the first word."""
    text = answers[0].text
    return {"yes": pope_says_yes(text), "truth": item.truth["yes"], "clear": says_yes(text) is not None}


def total(scored: Sequence[tuple[Item, Record]]) -> Metrics:
    """Accuracy over all questions; precision, recall and F1 of yes; how many answers begin with neither."""
    score = BinaryScore()
    for _, record in scored:
        score.add(record["scores"]["yes"], record["scores"]["truth"])
    rates = {name: getattr(score, name) for name in ("accuracy", "f1", "precision", "recall", "yes_share")}
    unclear = sum(not record["scores"]["clear"] for _, record in scored)
    known = {name: None if rate != rate else rounded(rate) for name, rate in rates.items()}
    return {**known, "questions": score.count, "unclear": unclear}


TASK = Task("pope", read, judge, total, short_answers=True)
