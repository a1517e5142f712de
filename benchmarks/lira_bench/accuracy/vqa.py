"""Visual question answering: VQA's accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lira_bench.accuracy import vqa_v2
from lira_bench.accuracy.files import Annotations, need, need_text, read_lines
from lira_bench.accuracy.items import (
    Dataset,
    Entry,
    Item,
    LeftOut,
    Metrics,
    Question,
    Record,
    Source,
    Task,
    mean,
    rounded,
)
from lira_bench.accuracy.protocol import STRICT, Protocol
from lira_bench.accuracy.text_answers import authors_accuracy, vqa_accuracy
from lira_engine.errors import LiraError

if TYPE_CHECKING:
    from lira_runtime import Answer

FILES = ("vqa.jsonl", "*vqa*.jsonl", f"*{vqa_v2.QUESTIONS}")


def read(source: Source) -> Dataset:
    """Return an item per line: image, question, and `answer` or `answers` (a text or a list of texts); or per
    question of VQA's own pair of files (see vqa_v2). Questions that share a `question_id` are left out."""
    files = Annotations(source.data)
    path = files.find(*FILES)
    of_vqa = path.name.endswith((vqa_v2.QUESTIONS, vqa_v2.ANNOTATIONS))
    lines = vqa_v2.lines(files, path) if of_vqa else files.lines(path)
    entries = read_lines(lines, lambda key, line: _entry(key, line, source.instruction))
    return Dataset(tuple(entries[: source.limit]), files.hashes)


def ask(question: str, instruction: str | None) -> Question:
    """Return a question for the bundle's task `vqa`, with the instruction behind a blank, or without a blank
    if it begins with a line break."""
    if not instruction:
        return Question("vqa", question)
    return Question("vqa", question + ("" if instruction.startswith("\n") else " ") + instruction)


def _entry(key: str, line: dict[str, Any], instruction: str | None) -> Entry:
    try:
        image, question = need_text(line, "image"), need_text(line, "question")
        answers = need(line, "answers" if "answers" in line else "answer", (str, list))
        answers = [answers] if isinstance(answers, str) else answers
        if not answers or not all(isinstance(answer, str) for answer in answers):
            raise LiraError("the answers are not a list of texts")
    except LiraError as error:
        return LeftOut(key, str(error))
    return Item(key, image, (ask(question, instruction),), {"answers": answers})


def judge(
    item: Item, answers: Sequence[Answer], masks: Sequence[np.ndarray], protocol: Protocol = STRICT
) -> dict[str, Any]:
    """Return the accuracy of the answer, by text_answers.vqa_accuracy or authors_accuracy."""
    text, truth = answers[0].text, item.truth["answers"]
    if protocol.answers == "lenient":
        return {"accuracy": rounded(vqa_accuracy(text, truth))}
    return {"accuracy": rounded(authors_accuracy(text, truth, of_gqa=protocol.answers == "gqa"))}


def total(scored: Sequence[tuple[Item, Record]], protocol: Protocol = STRICT) -> Metrics:
    """Return the mean accuracy of the questions."""
    values = [record["scores"]["accuracy"] for _, record in scored]
    return {"accuracy": mean(values), "questions": len(values)}


TASK = Task("vqa", read, judge, total, FILES, short_answers=True)
