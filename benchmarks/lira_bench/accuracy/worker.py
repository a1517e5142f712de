"""Looks at an image once and asks everything about it: groups of items -> records."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lira_bench.accuracy import segmentation
from lira_bench.accuracy.agreement import Agreement, replay
from lira_bench.accuracy.files import identity, image_path
from lira_bench.accuracy.items import Item, Question, Record, rounded
from lira_bench.accuracy.output import START_ANEW
from lira_bench.accuracy.tasks import task_named
from lira_engine.errors import LiraError, OutOfMemory
from lira_runtime import Answer, Lira, Scene, rle
from lira_runtime import report as runtime_report
from lira_runtime.answer import first_tokens
from lira_runtime.events import Event, FinishedEvent
from lira_runtime.images import open_image

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from lira_runtime.prompts import Ilvc


@dataclass(frozen=True)
class EngineChoice:
    """Engines to evaluate."""

    bundle: Path
    target: str
    precision: str


@dataclass(frozen=True)
class Job:
    """What a worker needs to know, wherever it runs."""

    engines: EngineChoice
    task: str
    images: Path
    ilvc: str = "auto"
    threads: int | None = None


@dataclass(frozen=True)
class Group:
    """The items about one image; `references` holds the records of the engines to compare with, by key."""

    image: str
    items: tuple[Item, ...]
    references: dict[str, Record] | None = None


def grouped(items: Sequence[Item], references: dict[str, Record] | None = None) -> list[Group]:
    """Items by image, images in the order in which they first appear."""
    by_image: dict[str, list[Item]] = {}
    for item in items:
        by_image.setdefault(item.image, []).append(item)
    if references is None:
        return [Group(image, tuple(of_image)) for image, of_image in by_image.items()]
    return [
        Group(image, tuple(of_image), {i.key: references[i.key] for i in of_image if i.key in references})
        for image, of_image in by_image.items()
    ]


class Worker:
    """Engines of one job, open. A context manager."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._task = task_named(job.task)
        engines = job.engines
        self._lira = Lira.open(engines.bundle, engines.target, engines.precision, job.threads)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._lira.close()

    def records(self, group: Group) -> Iterator[Record]:
        """One record per item. What is wrong with an image, a mask or a question is the item's: it is left
        out. What goes wrong in the engines is not, and is raised."""
        try:
            path = image_path(self._job.images, group.image)
            sha256 = identity(path)  # before the pixels: of a picture replaced in between it is the old one's
            picture = open_image(path, upright=False)
        except OutOfMemory:
            raise
        except LiraError as error:
            reason = str(error).replace(f"{self._job.images}{os.sep}", "")  # the same wherever the data is
            yield from (left_out(item.key, reason) for item in group.items)
            return
        for key, reference in (group.references or {}).items():
            if reference["image_sha256"] != sha256:
                raise LiraError(f"{group.image} was replaced since {key} was asked about: {START_ANEW}")
        look = _Look(self._lira, picture, cast("Ilvc", self._job.ilvc))
        for item in group.items:
            try:
                masks = true_masks(item, picture, path)
                look.check(item)
            except LiraError as error:
                yield left_out(item.key, str(error))
                continue
            look.encode()
            try:
                look.check_lengths(item)
            except LiraError as error:
                yield left_out(item.key, str(error))
                continue
            answers = [look.ask(question) for question in item.questions]
            record: Record = {
                "item": item.key,
                "image": item.image,
                "image_sha256": sha256,
                "size": [picture.height, picture.width],
                "answers": [_plain(q, answer) for q, answer in zip(item.questions, answers, strict=True)],
                "scores": self._task.judge(item, answers, masks),
            }
            if group.references is not None and item.key in group.references:
                record["agreement"] = look.agreement(item, group.references[item.key])
            yield record


def true_masks(item: Item, picture: Image, path: Path) -> list[np.ndarray]:
    """An item's masks in stored pixels, [H, W] bool, `picture` being the image as it is stored.

    Annotations of data sets are made on stored pixels, and the authors' scripts do not turn either. Raises
    LiraError for annotations of another size, of the turned picture, or that are damaged.
    """
    try:
        masks = _masks(item, picture.size)
        outside = item.size is None and any(segmentation.outside(mask, picture.size) for mask in item.masks)
        if not outside:
            return masks
    except LiraError:
        if not _fits_turned(item, path):
            raise
    else:
        if not _fits_turned(item, path):
            return masks
    width, height = picture.size
    raise LiraError(
        f"{item.image} is stored with {width} x {height} pixels, its annotations are for the "
        f"{height} x {width} to which its EXIF orientation turns it: store it upright, without the tag"
    )


def _masks(item: Item, size: tuple[int, int]) -> list[np.ndarray]:
    width, height = size
    if item.size is not None and item.size != (height, width):
        stated = f"{item.size[1]} x {item.size[0]}"
        raise LiraError(f"{item.image} has {width} x {height} pixels, its annotations are for {stated}")
    return [segmentation.decode(mask, height, width) for mask in item.masks]


def _fits_turned(item: Item, path: Path) -> bool:
    """Whether annotations that do not fit the stored image fit the one that its orientation makes of it."""
    try:
        turned = open_image(path).size
        _masks(item, turned)
    except LiraError:
        return False
    return not any(segmentation.outside(mask, turned) for mask in item.masks)


def left_out(key: str, reason: str) -> Record:
    """The record of an item that could not be asked about."""
    return {"item": key, "left_out": reason}


class _Look:
    """One image; encoded when something is asked, and no question is asked twice."""

    def __init__(self, lira: Lira, picture: Image, ilvc: Ilvc) -> None:
        self._lira = lira
        self._picture = picture
        self._ilvc = ilvc
        self._scene: Scene | None = None
        self._answers: dict[Question, Answer] = {}

    def check(self, item: Item) -> None:
        """Raises LiraError for a question that the bundle does not take, or words that it does not have."""
        for question in item.questions:
            self._lira.prompt(None, question.task, question.text, self._ilvc)
        if item.words:
            first_tokens(self._lira.tokenizer, item.words)

    def encode(self) -> Scene:
        if self._scene is None:
            self._scene = self._lira.look(self._picture)
        return self._scene

    def check_lengths(self, item: Item) -> None:
        """Raises LiraError for a question that does not fit beside the image."""
        for question in item.questions:
            self._stream(question)

    def ask(self, question: Question) -> Answer:
        if question not in self._answers:
            *_, last = self._stream(question)
            assert isinstance(last, FinishedEvent), "a stream ends with FinishedEvent"
            self._answers[question] = last.answer
        return self._answers[question]

    def _stream(self, question: Question) -> Iterator[Event]:
        return self.encode().stream(task=question.task, expression=question.text, ilvc=self._ilvc)

    def agreement(self, item: Item, reference: Record) -> dict[str, Any]:
        agreement = Agreement()
        banned = (self._lira.manifest.tokens.image_id,) if self._ilvc == "off" else ()
        for question, wanted in zip(item.questions, reference["answers"], strict=True):
            prompt = self._lira.prompt(None, question.task, question.text, self._ilvc)
            answer, chosen = replay(
                self.encode(), prompt, wanted["token_ids"], use_ilvc=self._ilvc != "off", banned=banned
            )
            expected = [rle.decode(mask["rle"]) for mask in wanted["masks"]]
            agreement.add(wanted["token_ids"], chosen, [mask.binary for mask in answer.masks], expected)
        return {
            "tokens": agreement.tokens,
            "agreed": agreement.agreed,
            "mask_ious": [rounded(value) for value in agreement.ious],
        }


def _plain(question: Question, answer: Answer) -> dict[str, Any]:
    """The answer for JSON, without its timings: two runs of the same engines have the same lines."""
    plain = runtime_report.as_dict(answer)
    del plain["timings"]
    for mask in plain["masks"]:
        mask["score"] = rounded(mask["score"], 4)
    return {"task": question.task, "question": question.text, **plain}
