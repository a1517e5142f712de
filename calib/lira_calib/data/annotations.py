"""Items to calibrate on, from annotations in the forms that `lira-edge eval` reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lira_bench.accuracy import gcg_training, items, refseg
from lira_bench.accuracy.files import Annotations, short
from lira_bench.accuracy.tasks import TASKS
from lira_bench.accuracy.text_answers import normalised
from lira_bench.accuracy.worker import true_masks
from lira_calib.data.answers import REFERRED, grounded_answer, plain_caption
from lira_calib.data.mixture import COMPREHENSION, CONVERSATION, REFERRING
from lira_engine.errors import LiraError

if TYPE_CHECKING:
    from PIL.Image import Image

_READ = ("refseg", "gcg", "vqa", "pope", "attreval")
"""Tasks of `eval` whose annotations hold answers, in the order in which they claim a folder's files."""
_KNOWN = (
    "expected refs of RefCOCO beside instances.json, grounded captions of GranD-f, Flickr or RefCOCOg, VQA's "
    "files, or lines with image, question and answer (POPE: image, text, label)"
)
_TRAINING = ("train", "training")
_SNIFFED = 20  # lines of a file that are looked at
_HEAD = 1 << 16  # characters of one


@dataclass(frozen=True)
class Item:
    """A picture with a question and its answer.

    Attributes:
        key: its place in an annotation file, or the picture's name and the task.
        image: path below the images folder.
        task: of the bundle: refseg, gcg, vqa or caption.
        text: the expression or question; None for a task's own question, and for an expression that the
            model's own answers have to give.
        answer: annotated, with LIRA's tags; None for the model's own.
        masks: for each `[SEG]` of the answer the segmentations whose union is its true mask.
        group: of the paper's table 1: comprehension, referring or conversation.
        truth: what else the annotation says.
        tokens: of the model's own answer. size: (height, width) that the annotation states.
    """

    key: str
    image: str
    task: str
    text: str | None
    answer: str | None
    masks: tuple[tuple[Any, ...], ...]
    group: str
    truth: Mapping[str, Any] = field(default_factory=dict)
    tokens: tuple[int, ...] | None = None
    size: tuple[int, int] | None = None

    def true_masks(self, picture: Image, path: Path) -> list[np.ndarray]:
        """Return the true mask of each `[SEG]`, bool [H, W], in the pixels of `picture`, the file at `path`.

        Raises LiraError for damaged ones, and for those of another size or of the turned picture.
        """
        listed = tuple(part for parts in self.masks for part in parts)
        asked = items.Item(self.key, self.image, (), {}, listed, self.size)
        decoded = iter(true_masks(asked, picture, path))
        empty = np.zeros((picture.height, picture.width), bool)
        return [np.logical_or.reduce([empty, *islice(decoded, len(parts))]) for parts in self.masks]


@dataclass(frozen=True)
class Read:
    """What is in a file or folder. `files`: SHA-256 by name."""

    items: list[Item]
    left_out: list[tuple[str, str]]
    files: dict[str, str]


def items_of(path: Path) -> Read:
    """Read an annotation file, or all that a folder holds. Raises LiraError for files of no known form, and
    where the choice between two is the user's."""
    if not path.exists():
        raise LiraError(f"--questions {path}: there is no such file or folder")
    files = _claimed(path) if path.is_dir() else [(_task_of(path), path)]
    if not files:
        raise LiraError(f"--questions {path} holds no annotations that have answers: {_KNOWN}")
    read = Read([], [], {})
    for task, file in files:
        dataset = TASKS[task].read(items.Source(file, split=_split_of(task, file)))
        for entry in dataset.entries:
            if isinstance(entry, items.LeftOut):
                read.left_out.append((entry.key, entry.reason))
            else:
                read.items.extend(_CONVERTED[task](entry))
        read.files.update(dataset.files)
    return read


def _claimed(folder: Path) -> list[tuple[str, Path]]:
    """Return the annotation files of a folder with their tasks."""
    found: dict[Path, str] = {}
    for task in _READ:
        for pattern in TASKS[task].files:
            fitting = sorted(path for path in folder.glob(pattern) if path.is_file() and path not in found)
            if len(fitting) > 1:
                names = ", ".join(path.name for path in fitting)
                raise LiraError(f"{folder} holds {names}: choose one, --questions {fitting[0]}")
            if fitting:
                found[fitting[0]] = task
                break
    return [(task, path) for path, task in found.items()]


def _task_of(file: Path) -> str:
    """Return the task whose annotations a file holds, by its published name, else by its content."""
    for task in _READ:
        if any(fnmatch(file.name, pattern) for pattern in TASKS[task].files):
            return task
    if file.suffix in refseg.PICKLES:
        return "refseg"  # its reader says why a pickle is never opened
    for entry in _first_entries(file):
        if "sentences" in entry:
            return "refseg"
        if "groundings" in entry or gcg_training.is_refcocog(entry) or "tokens_positive" in entry:
            return "gcg"
        if "question" in entry and ("answer" in entry or "answers" in entry):
            return "vqa"
        if "text" in entry and "label" in entry:
            return "pope"
    raise LiraError(f"--questions {file} has no annotations of a known form: {_KNOWN}")


def _first_entries(file: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the first objects of a list, of a COCO file's annotations, or of a file of JSON lines."""
    found: Any = None
    try:
        text = file.read_bytes().decode("utf-8-sig", "replace")
        try:
            content = json.loads(text)
            found = content.get("annotations", [content]) if isinstance(content, dict) else content
        except (ValueError, RecursionError):
            found = [_parsed(line) for line in islice(text.split("\n"), _SNIFFED)]
    except OSError as error:
        raise LiraError(f"{file} cannot be read: {error.strerror}") from None
    for entry in found[:_SNIFFED] if isinstance(found, list) else ():
        if isinstance(entry, Mapping):
            yield entry


def _parsed(line: str) -> Any:
    try:
        return json.loads(line[:_HEAD])
    except (ValueError, RecursionError):
        return None


def _split_of(task: str, file: Path) -> str | None:
    """Return the split of RefCOCO's refs that models are trained on, None if there are no splits."""
    if task != "refseg" or file.suffix in refseg.PICKLES:
        return None
    named = (entry.get("split") for entry in _all_entries(file))
    splits = {name for name in named if isinstance(name, str)}
    if len(splits) < 2:
        return None
    chosen = [name for name in _TRAINING if name in splits]
    if not chosen:
        listed = ", ".join(short(name) for name in sorted(splits))
        raise LiraError(
            f"{file} has the splits {listed} and no train: calibrate on a file that no evaluation uses"
        )
    return chosen[0]


def _all_entries(file: Path) -> list[Mapping[str, Any]]:
    return [entry for entry in Annotations(file).json(file, list) if isinstance(entry, Mapping)]


def _referring(item: items.Item) -> Iterator[Item]:
    if item.masks:  # LIRA's training has no expressions without a target
        text, truth = item.questions[0].text, {"classes": _classes(item.truth["categories"])}
        made = Item(item.key, item.image, "refseg", text, REFERRED, (item.masks,), REFERRING, truth)
        yield replace(made, size=item.size)


def _grounded(item: items.Item) -> Iterator[Item]:
    """Yield the grounded caption, and the caption alone."""
    phrases, caption = item.truth["phrases"], item.truth["caption"]
    if phrases:
        answer, order = grounded_answer(caption, phrases, item.truth["spans"])
        masks = tuple((item.masks[number],) for number in order for _ in range(2))  # each has two [SEG]
        truth = {"classes": _classes(phrases)}
        made = Item(item.key, item.image, "gcg", None, answer, masks, CONVERSATION, truth)
        yield replace(made, size=item.size)
    if isinstance(caption, str) and (plain := plain_caption(caption)):
        yield Item(f"{item.key}.caption", item.image, "caption", None, plain, (), COMPREHENSION)


def _answered(item: items.Item) -> Iterator[Item]:
    answers = Counter(text.strip() for text in item.truth["answers"])
    yield _question(item, 0, answers.most_common(1)[0][0])


def _existence(item: items.Item) -> Iterator[Item]:
    yield _question(item, 0, "Yes" if item.truth["yes"] else "No")


def _pair(item: items.Item) -> Iterator[Item]:
    if not item.words:  # an expression to rank words at has no mask to train on
        yield _question(item, 0, "Yes")
        yield _question(item, 1, "No")


def _question(item: items.Item, number: int, answer: str) -> Item:
    plain = plain_caption(answer)  # a tag in an answer would need a mask
    key = f"{item.key}.{number}" if len(item.questions) > 1 else item.key
    return Item(key, item.image, "vqa", item.questions[number].text, plain, (), COMPREHENSION)


def _classes(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted({normalised(name) for name in names}))


_CONVERTED: dict[str, Callable[[items.Item], Iterator[Item]]] = {
    "refseg": _referring,
    "gcg": _grounded,
    "vqa": _answered,
    "pope": _existence,
    "attreval": _pair,
}
