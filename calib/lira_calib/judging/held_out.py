"""The folder `held_out` of a recipe: pictures that its calibration did not use, and what fp32 answers there.

It holds the pictures' own bytes and `questions.json`, so that a build can be judged where neither the data
set nor an fp32 language model is. Source of the format: this module.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lira_calib.judging.agreement import Agreement
from lira_calib.judging.question import Question
from lira_engine.bundle import schema
from lira_engine.bundle.integrity import confined, sha256_of
from lira_engine.engines.recipe import HELD_OUT, MEND, Recipe
from lira_engine.errors import LiraError
from lira_runtime import rle

NAME = "questions.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class HeldOut:
    """The content of questions.json. metrics: of fp32, by name (`lira_calib.judging.agreement`)."""

    format_version: int
    questions: tuple[Question, ...]
    metrics: dict[str, float] = field(default_factory=dict)


class Recorded(Protocol):
    """What is read of a recorded sequence (`lira_calib.data.sequences.Sequence`)."""

    @property
    def request(self) -> Any: ...
    @property
    def item(self) -> Any: ...
    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def shown(self) -> tuple[int, ...]: ...
    @property
    def annotated(self) -> bool: ...
    @property
    def truth(self) -> list[np.ndarray | None]: ...


@dataclass(frozen=True)
class Fp32Answer:
    """What fp32 makes of a sequence: tokens [n], its own choice for each of the forced ones; masks: bool
    [H, W], one for each `[SEG]` that is read."""

    tokens: np.ndarray
    masks: list[np.ndarray]


def write_held_out(folder: Path, sequences: Iterable[Recorded], answers: Iterable[Fp32Answer]) -> None:
    """Write sequences, with the fp32 answer to each, into the new folder `folder`, a recipe's HELD_OUT.

    The caller makes the recipe appear whole (system.atomic). Nothing that is written names a path of this
    machine.
    """
    folder.mkdir()
    questions = []
    for sequence, answer in zip(sequences, answers, strict=True):
        # The regions of an answer of the model's own are those of its masks.
        given = [mask for mask in sequence.truth if mask is not None] if sequence.annotated else answer.masks
        picture = _copied(sequence.request.image, folder)
        question = Question(
            key=sequence.item.key,
            picture=picture,
            upright=sequence.request.upright,
            task=sequence.item.task,
            text=sequence.item.text,
            tokens=tuple(int(token) for token in sequence.tokens),
            expected=tuple(int(token) for token in answer.tokens),
            given=tuple(map(rle.encode, given)),
            annotated=sequence.annotated,
            fp32=tuple(map(rle.encode, answer.masks)),
            shown=tuple(sequence.shown),
        )
        question.check(question.key)
        questions.append(question)
    write_questions(folder, questions)


def write_questions(folder: Path, questions: Iterable[Question]) -> None:
    """Write questions.json, with the metrics of fp32, beside pictures that are there."""
    asked = tuple(questions)
    fp32 = Agreement()
    for question in asked:
        fp32.add(question, question.expected, [rle.decode(mask) for mask in question.fp32])
    metrics = {name: value for name, value in fp32.metrics().items() if name == "ciou"}  # the others are 1
    content = schema.write(HeldOut(FORMAT_VERSION, asked, metrics))
    (folder / NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_held_out(folder: Path, recipe: Recipe) -> HeldOut:
    """Read the held-out questions of the recipe in `folder`, whose files are checked already. Raises
    LiraError if there are none, or a picture is not among the recipe's files."""
    name = f"{HELD_OUT}/{NAME}"
    if name not in recipe.files:
        raise LiraError(f"{folder} holds no {name}, by which its engines are judged: {MEND}")
    path = folder / name
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LiraError(f"{path} cannot be read ({str(error).splitlines()[0]}): {MEND}") from None
    version = data.get("format_version") if isinstance(data, Mapping) else None
    if version != FORMAT_VERSION:
        raise LiraError(f"{path} has format version {repr(version)[:40]}, expected {FORMAT_VERSION}: {MEND}")
    found = schema.read(HeldOut, data, str(path))
    if not found.questions:
        raise LiraError(f"{path} has no questions: {MEND}")
    for question in found.questions:
        question.check(f"{path}: {question.key}")
        confined(folder / HELD_OUT, question.picture)
        if f"{HELD_OUT}/{question.picture}" not in recipe.files:
            raise LiraError(f"{path} asks about {question.picture}, which the recipe does not list: {MEND}")
    return found


def _copied(image: Path, folder: Path) -> str:
    """Copy a picture into the folder, named by its content; return the name."""
    name = f"{sha256_of(image)[:16]}{image.suffix.lower()}"
    (folder / name).write_bytes(image.read_bytes())
    return name
