"""AttrEval: does the model know the attributes of the objects that it is asked about and that it segments?

Source: the paper's supplementary text, section 4. There are two kinds of lines, in one file or in two.
Question pairs: image, question, answer (yes or no), kind, pair_id; without pair_ids, two consecutive lines
are a pair, as in upstream's refcoco_attri.jsonl. Referring segmentation: image, expression, kind, words (the
candidates) and answer (the true word, or a list of true words); the expression does not name the attribute.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lira_bench.accuracy.files import (
    Annotations,
    Line,
    is_text,
    need,
    need_text,
    read_lines,
    short,
    unrepeated,
)
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
from lira_bench.accuracy.vqa import ask
from lira_bench.metrics import PairedAccuracy
from lira_engine.errors import LiraError

if TYPE_CHECKING:
    from lira_runtime import Answer

FILES = ("attreval.jsonl", "*_attri.jsonl", "vqa.jsonl")
TOP = (1, 3, 5)
ALL = "all"

Asked = tuple[str, dict[str, Any]]


def read(source: Source) -> Dataset:
    """Return an item per pair and per referring expression; the limit holds for each of the two."""
    files = Annotations(source.data)
    if source.data.is_file():
        paths = [source.data]
    else:
        patterns = (FILES, ("attributes.jsonl",))
        paths = [path for names in patterns if (path := files.find_optional(*names)) is not None]
    if not paths:
        raise LiraError(
            f"{files.folder} holds no attreval.jsonl, *_attri.jsonl, vqa.jsonl or attributes.jsonl"
        )
    pairs: list[Entry] = []
    expressions: list[Entry] = []
    for path in paths:
        ranked: list[Line] = []
        asked: list[Line] = []
        for key, line in files.lines(path):
            (ranked if isinstance(line, dict) and "words" in line else asked).append((key, line))
        expressions += read_lines(ranked, _expression)
        pairs += _pairs(asked, source.instruction)
    return Dataset((*pairs[: source.limit], *expressions[: source.limit]), files.hashes)


def _pairs(lines: Sequence[Line], instruction: str | None) -> Iterator[Entry]:
    together: dict[Any, list[Asked]] = {}
    numbered = any(isinstance(line, dict) and "pair_id" in line for _, line in lines)
    for index, (key, line) in enumerate(lines):
        if isinstance(line, LeftOut):  # it keeps its place, so that only its own pair is incomplete
            yield line
        elif numbered and type(line.get("pair_id")) not in (str, int):
            yield LeftOut(key, "key 'pair_id' is missing, which other lines have")
        else:
            together.setdefault(line["pair_id"] if numbered else index // 2, []).append((key, line))
    # Without pair_ids, question_ids may not be unique to a question.
    yield from unrepeated(
        "question_id",
        (
            (
                members[0][0],
                [line.get("question_id") for _, line in members if numbered],
                [_pair(members, instruction)],
            )
            for members in together.values()
        ),
    )


def _pair(members: Sequence[Asked], instruction: str | None) -> Entry:
    key = members[0][0]
    try:
        if len(members) != 2:
            raise LiraError(f"{len(members)} questions in the pair, expected two")
        texts = [need_text(line, "question") for _, line in members]
        answers = [need_text(line, "answer").strip().lower() for _, line in members]
        images = {need_text(line, "image") for _, line in members}
        if sorted(answers) != ["no", "yes"]:
            said = " and ".join(answer[:40] for answer in answers)
            raise LiraError(f"the pair's answers are {said}, expected a yes and a no")
        if len(images) > 1:
            names = " and ".join(name[:40] for name in sorted(images))
            raise LiraError(f"the pair is about two images, {names}, expected one")
        kind = _kind(members[0][1])
    except LiraError as error:
        return LeftOut(key, str(error))
    yes = answers.index("yes")
    questions = (ask(texts[yes], instruction), ask(texts[1 - yes], instruction))
    return Item(key, images.pop(), questions, {"kind": kind})


def _expression(key: str, line: dict[str, Any]) -> Entry:
    try:
        image, expression = need_text(line, "image"), need_text(line, "expression")
        words, answer = need(line, "words", list), need(line, "answer", (str, list))
        answers = [answer] if isinstance(answer, str) else answer
        if len(words) < 2 or not all(map(is_text, words)):
            raise LiraError("key 'words' is no list of at least two words")
        if not answers or any(word not in words for word in answers):
            raise LiraError(f"the answer {short(answer)} is not among the words")
        kind = _kind(line)
    except LiraError as error:
        return LeftOut(key, str(error))
    truth = {"kind": kind, "answers": answers}
    return Item(key, image, (Question("refseg", expression),), truth, words=tuple(words))


def _kind(line: dict[str, Any]) -> str:
    return need_text(line, "kind") if "kind" in line else "attribute"


def judge(
    item: Item, answers: Sequence[Answer], masks: Sequence[np.ndarray], protocol: Protocol = STRICT
) -> dict[str, Any]:
    """Return the scores of an item.

    Of a pair only its kind: `total` reads the answers. Of an expression the five best words at the first
    `[SEG]`, and the rank of the best true word (None without a mask).
    """
    if not item.words:
        return {"kind": item.truth["kind"]}
    ranked = answers[0].attributes(item.words, top=len(item.words)) if answers[0].masks else []
    true = [place for place, (word, _) in enumerate(ranked, 1) if word in item.truth["answers"]]
    return {
        "kind": item.truth["kind"],
        "ranked": [[word, rounded(share, 4)] for word, share in ranked[:5]],
        "rank": min(true, default=None),
        "answers": item.truth["answers"],
        "chance": rounded(len(set(item.truth["answers"])) / len(item.words)),
    }


def total(scored: Sequence[tuple[Item, Record]], protocol: Protocol = STRICT) -> Metrics:
    """Return the metrics of each kind and of `all` kinds.

    KIND.paired: share of pairs with both answers right. KIND.single: share of right answers. An answer is
    read by its first word; where texts are compared exactly, by the whole text. KIND.topN: share with a true
    word among the N best at the `[SEG]`. KIND.chance: expected top 1 of a guess.
    """
    pairs: dict[str, PairedAccuracy] = {}
    ranks: dict[str, list[dict[str, Any]]] = {}
    for item, record in scored:
        scores = record["scores"]
        for kind in dict.fromkeys((ALL, scores["kind"])):
            if item.words:
                ranks.setdefault(kind, []).append(scores)
            else:
                texts = [_yes_or_no(answer["text"], protocol) for answer in record["answers"]]
                pairs.setdefault(kind, PairedAccuracy()).add(*texts)
    totals: Metrics = {}
    for kind, score in pairs.items():
        totals[f"{kind}.paired"] = rounded(score.paired)
        totals[f"{kind}.single"] = rounded(score.single)
        totals[f"{kind}.pairs"] = score.pairs
    for kind, of_kind in ranks.items():
        for top in TOP:
            hits = [float(entry["rank"] is not None and entry["rank"] <= top) for entry in of_kind]
            totals[f"{kind}.top{top}"] = mean(hits)
        totals[f"{kind}.chance"] = mean([entry["chance"] for entry in of_kind])
        totals[f"{kind}.expressions"] = len(of_kind)
    return totals


def _yes_or_no(text: str, protocol: Protocol) -> str:
    """Return the text to read a yes or no from; empty if the rules ask for that word alone and it is not."""
    alone = text.strip().lower() in ("yes", "no")
    return text if alone or protocol.answers == "lenient" else ""


TASK = Task("attreval", read, judge, total, FILES, short_answers=True)
