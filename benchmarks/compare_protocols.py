"""Measure what each rule of the authors' evaluation scripts changes, on unseen scenes of lira-nano.

    python benchmarks/compare_protocols.py BUNDLE --scenes 40

Evaluates every task by our rules, then with each rule of the authors in place of ours, then with all of them
(`lira-edge eval --protocol authors`), and prints the table of docs/eval.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.progress import track

from lira_bench.accuracy.items import Evaluation, Record, Source
from lira_bench.accuracy.protocol import STRICT, Protocol, protocol_for
from lira_bench.accuracy.run import evaluate
from lira_bench.accuracy.tasks import task_named
from lira_bench.accuracy.worker import EngineChoice, Job
from lira_bench.reproduce import parser_line
from lira_nano.dataset import write_dataset
from lira_nano.scenes import TRAINING_SEED

SEED = 2
assert SEED != TRAINING_SEED
FIGURES = {  # per task: the metrics shown
    "refseg": ("ciou", "giou"),
    "gcg": ("ap50", "miou"),
    "vqa": ("accuracy",),
    "attreval": ("all.paired",),
    "pope": ("accuracy",),
}


@dataclass(frozen=True)
class Rule:
    """Fields of Protocol that make one rule, with its text in our protocol and in the authors'."""

    task: str
    fields: tuple[str, ...]
    strict: str
    authors: str
    benchmark: str | None = None


_PLAIN = ("ilvc",), "`<image_id>` brings its region", "plain: `<image_id>` is a token like any other"
_EARLY = ("min_new_tokens",), "any first token", "first token not `</s>`"
_TILES = ("min_tiles", "max_tiles"), "the bundle's tiles"
_TOKENS = ("max_new_tokens",), "the bundle's `max_new_tokens`"
_MANY = ("of_many",), "all entries", "of more than 20,000 the first 4,000"
RULES = (
    Rule("refseg", *_PLAIN),
    Rule("refseg", ("bos",), "no BOS", "a BOS in front of the prompt"),
    Rule("refseg", *_TILES, "4 to 12 tiles"),
    Rule("refseg", *_TOKENS, "100"),
    Rule("refseg", ("without_mask",), "no `[SEG]`: an empty mask", "no `[SEG]`: in no sum of cIoU, IoU 0"),
    Rule("refseg", ("overlaps",), "a true mask is its polygons' union", "where polygons overlap is neither"),
    Rule("gcg", *_TILES, "1 to 6 tiles"),
    Rule("gcg", ("questions",), "the task's question", "up to six questions, until a region"),
    Rule("gcg", *_TOKENS, "100"),
    Rule("gcg", ("ends_at_turn_only",), "`</s>` ends an answer, too", "`<\\|im_end\\|>` alone does"),
    Rule("gcg", ("masks_of_regions",), "masks of phrases count", "masks taken at `<image_id>` count"),
    Rule("vqa", *_PLAIN),
    Rule("vqa", *_TILES, "4 to 6 tiles"),
    Rule("vqa", ("instruction",), "the question alone", "and `Answer ... single word or phrase.`"),
    Rule("vqa", ("instruction",), "the question alone", "VizWiz: and `When ... 'unanswerable'.`", "vizwiz"),
    Rule("vqa", *_TOKENS, "10"),
    Rule("vqa", *_EARLY),
    Rule("vqa", ("answers",), "texts normalised as in VQA", "the same text; of ten, TextVQA's rules"),
    Rule("vqa", ("answers",), "texts normalised as in VQA", "GQA: shortened first", "gqa"),
    Rule("vqa", *_MANY),
    Rule("attreval", *_PLAIN),
    Rule("attreval", *_TILES, "4 to 6 tiles"),
    Rule("attreval", *_TOKENS, "10"),
    Rule("attreval", *_EARLY),
    Rule("attreval", ("answers",), "the first word is read", "the whole answer is yes or no"),
    Rule("attreval", ("ranks_words",), "words ranked at the `[SEG]`, too", "pairs alone"),
    Rule("attreval", *_MANY),
    Rule("pope", *_PLAIN),
    Rule("pope", *_TILES, "4 to 8 tiles"),
    Rule("pope", ("instruction",), "the question alone", "and, on a line, `Answer ... or phrase.`"),
    Rule("pope", *_TOKENS, "100"),
    Rule("pope", *_EARLY),
    Rule("pope", ("beams",), "greedy", "5 beams"),
    Rule("pope", ("answers",), "words end at blanks and line breaks", "at blanks alone"),
)


def alone(rule: Rule) -> Protocol:
    """Return our protocol with this rule of the authors."""
    authors = protocol_for("authors", rule.task, rule.benchmark)
    return replace(STRICT, **{name: getattr(authors, name) for name in rule.fields})


class Scenes:
    """Evaluations of one bundle on the same scenes, by protocol."""

    def __init__(self, bundle: Path, data: Path, out: Path) -> None:
        self._engines = EngineChoice(bundle, "cpu", "fp32")
        self._data = data
        self._out = out
        self._count = 0

    def evaluated(self, task: str, rules: Protocol) -> Evaluation:
        source = Source(self._data, instruction=rules.instruction)
        dataset = task_named(task).read(source).chosen_by(rules)
        self._count += 1
        job = Job(self._engines, task, self._data / "images", rules, threads=1)
        return evaluate(job, source, dataset, self._out / f"{self._count}")


def changed(before: Evaluation, after: Evaluation) -> str:
    """Return how many items have another answer or score, or are no longer evaluated."""
    same = 0
    for key, record in before.records.items():
        other = after.records.get(key)
        if other is None or other["scores"] != record["scores"]:
            continue
        same += _told(record) == _told(other)
    return f"{len(before.records) - same} of {len(before.records)}"


def _told(record: Record) -> list[tuple[list[int], list[object]]]:
    """Return the tokens and mask pixels of the answers."""
    return [(answer["token_ids"], [mask["rle"] for mask in answer["masks"]]) for answer in record["answers"]]


def figures(evaluation: Evaluation, task: str) -> str:
    return ", ".join(f"{name} {evaluation.metrics[name]:.4f}" for name in FIGURES[task])


def rows(scenes: Scenes) -> list[Sequence[str]]:
    """Return rows by task: one for our rules, one for each rule alone, one for all rules of the authors."""
    ours = {task: scenes.evaluated(task, STRICT) for task in track(FIGURES, "ours")}
    found: list[Sequence[str]] = []
    for rule in track(RULES, "rule by rule"):
        strict = ours[rule.task]
        if not any(row[0] == rule.task for row in found):
            found.append((rule.task, "(all of ours)", "", figures(strict, rule.task), ""))
        other = scenes.evaluated(rule.task, alone(rule))
        found.append(
            (rule.task, rule.strict, rule.authors, figures(other, rule.task), changed(strict, other))
        )
    for task, strict in ours.items():
        other = scenes.evaluated(task, protocol_for("authors", task))
        last = max(index for index, row in enumerate(found) if row[0] == task)
        line = (task, "", "(all of the authors')", figures(other, task), changed(strict, other))
        found.insert(last + 1, line)
    return found


def table(found: Sequence[Sequence[str]]) -> str:
    head = [("task", "strict", "authors", "figure with this rule alone", "items changed"), ("---",) * 5]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [*head, *found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--scenes", type=int, default=40)
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        data = Path(folder) / "scenes"
        write_dataset(data, SEED, asked.scenes)
        print(table(rows(Scenes(asked.bundle, data, Path(folder) / "out"))))
    # Not on the standard output, which is the table.
    line = parser_line("python benchmarks/compare_protocols.py", parser, asked, "bundle")
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
