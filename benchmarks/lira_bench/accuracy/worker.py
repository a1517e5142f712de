"""Turn groups of items into records: encode an image once, and ask everything about it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lira_bench.accuracy import segmentation
from lira_bench.accuracy.agreement import Agreement, replay
from lira_bench.accuracy.files import identity, image_path
from lira_bench.accuracy.items import Item, Question, Record, rounded
from lira_bench.accuracy.output import START_ANEW
from lira_bench.accuracy.protocol import STRICT, Protocol
from lira_bench.accuracy.tasks import task_named
from lira_engine.errors import LiraError, OutOfMemory
from lira_engine.system.terminal import warn
from lira_runtime import Answer, Lira, Scene, rle
from lira_runtime import report as runtime_report
from lira_runtime.answer import first_tokens, last_answer
from lira_runtime.images import open_image
from lira_runtime.prompts import Prompt, banned_tokens, encodes_regions
from lira_runtime.sampling import Sampler, make_sampler

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from lira_engine.cuda.driver import DriverName


@dataclass(frozen=True)
class EngineChoice:
    """Engines to evaluate."""

    bundle: Path
    target: str
    precision: str
    driver: DriverName = "auto"


@dataclass(frozen=True)
class Job:
    """The work of a worker, in this process or another."""

    engines: EngineChoice
    task: str
    images: Path
    protocol: Protocol = STRICT
    threads: int | None = None


@dataclass(frozen=True)
class Group:
    """The items about one image. `references`: records of the engines to compare with, by key."""

    image: str
    items: tuple[Item, ...]
    references: dict[str, Record] | None = None


def grouped(items: Sequence[Item], references: dict[str, Record] | None = None) -> list[Group]:
    """Return the items by image, images in the order of their first item."""
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
    """The open engines of one job. A context manager."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._task = task_named(job.task)
        engines = job.engines
        self._lira = Lira.open(
            engines.bundle, engines.target, engines.precision, job.threads, driver=engines.driver
        )
        warn(self._lira.engines.remark)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._lira.close()

    def records(self, group: Group) -> Iterator[Record]:
        """Yield one record per item. An item with a bad image, mask or question is left out; an error of the
        engines is raised."""
        try:
            path = image_path(self._job.images, group.image)
            sha256 = identity(path)  # before reading pixels: a picture replaced in between is noticed
            picture = open_image(path, upright=False)
        except OutOfMemory:
            raise
        except LiraError as error:
            reason = str(error).replace(f"{self._job.images}{os.sep}", "")  # no paths of this machine
            yield from (left_out(item.key, reason) for item in group.items)
            return
        for key, reference in (group.references or {}).items():
            if reference["image_sha256"] != sha256:
                raise LiraError(f"{group.image} was replaced since {key} was asked about: {START_ANEW}")
        look = _Look(self._lira, picture, self._job.protocol)
        for item in group.items:
            try:
                masks = true_masks(item, picture, path)
                look.check(item)
            except OutOfMemory:
                raise
            except LiraError as error:
                yield left_out(item.key, str(error))
                continue
            look.encode()
            try:
                look.check_lengths(item)
            except LiraError as error:
                yield left_out(item.key, str(error))
                continue
            asked = [look.ask(question) for question in item.questions]
            answers = [answer for _, answer in asked]
            record: Record = {
                "item": item.key,
                "image": item.image,
                "image_sha256": sha256,
                "size": [picture.height, picture.width],
                "answers": [_plain(question, answer) for question, answer in asked],
                "scores": self._task.judge(item, answers, masks, self._job.protocol),
            }
            if group.references is not None and item.key in group.references:
                record["agreement"] = look.agreement(group.references[item.key])
            yield record


def true_masks(item: Item, picture: Image, path: Path) -> list[np.ndarray]:
    """Return the item's masks, bool [H, W], in the pixels of `picture`, the image as stored.

    Data sets are annotated on stored pixels, and the authors' scripts do not apply EXIF orientation either.
    Raises LiraError for damaged annotations, and for those of another size or of the turned picture.
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
    """Return whether the annotations fit the image after its EXIF orientation is applied."""
    try:
        turned = open_image(path).size
        _masks(item, turned)
    except OutOfMemory:
        raise
    except LiraError:
        return False
    return not any(segmentation.outside(mask, turned) for mask in item.masks)


def left_out(key: str, reason: str) -> Record:
    """Return the record of an item that could not be asked about."""
    return {"item": key, "left_out": reason}


class _Look:
    """One image, asked by the rules of a protocol. It is encoded at the first question, and the answer of a
    repeated question is reused."""

    def __init__(self, lira: Lira, picture: Image, protocol: Protocol) -> None:
        self._lira = lira
        self._picture = picture
        self._protocol = protocol
        self._scene: Scene | None = None
        self._answers: dict[Question, Answer] = {}

    def check(self, item: Item) -> None:
        """Raise LiraError for a question that the bundle does not take, or words that it cannot rank."""
        for question in item.questions:
            for one in self._in_turn(question):
                self._prompt(one)
        if item.words:
            first_tokens(self._lira.tokenizer, item.words)

    def encode(self) -> Scene:
        if self._scene is None:
            self._scene = self._lira.look(self._picture, **self._protocol.tiles)
        return self._scene

    def check_lengths(self, item: Item) -> None:
        """Raise LiraError for a question that does not fit into the context beside the image."""
        for question in item.questions:
            for one in self._in_turn(question):
                self.encode().stream_prompt(self._prompt(one), self._choose())

    def ask(self, question: Question) -> tuple[Question, Answer]:
        """Return the answer and its question: `question`, or the last one that the protocol asks until a
        region is encoded."""
        for one in self._in_turn(question):
            if one not in self._answers:
                self._answers[one] = self._answer(self._prompt(one))
            if self._answers[one].regions:
                break
        return one, self._answers[one]

    def agreement(self, reference: Record) -> dict[str, Any]:
        """Return the agreement of these engines, reading the answers of the record `reference` of others."""
        agreement = Agreement()
        for wanted in reference["answers"]:
            prompt = self._prompt(Question(wanted["task"], wanted["question"]))
            answer, chosen = replay(
                self.encode(), prompt, wanted["token_ids"], self._choose(), use_ilvc=self._use_ilvc
            )
            expected = [rle.decode(mask["rle"]) for mask in wanted["masks"]]
            agreement.add(wanted["token_ids"], chosen, [mask.binary for mask in answer.masks], expected)
        return {
            "tokens": agreement.tokens,
            "agreed": agreement.agreed,
            "mask_ious": [rounded(value) for value in agreement.ious],
        }

    def _in_turn(self, question: Question) -> Sequence[Question]:
        if not self._protocol.questions:
            return (question,)
        return [replace(question, text=text) for text in self._protocol.questions]

    def _prompt(self, question: Question) -> Prompt:
        rules, tokens = self._protocol, self._lira.manifest.tokens
        if rules.questions:  # they replace the task's
            prompt = self._lira.prompt(question.text, ilvc=rules.ilvc)
        else:
            prompt = self._lira.prompt(task=question.task, expression=question.text, ilvc=rules.ilvc)
        if rules.bos and prompt.before[0] != tokens.bos:
            prompt = replace(prompt, before=(tokens.bos, *prompt.before))
        if rules.ends_at_turn_only:
            prompt = replace(prompt, stop_ids=prompt.stop_ids - set(tokens.eos[1:]))
        if rules.max_new_tokens is not None:
            prompt = replace(prompt, max_new_tokens=rules.max_new_tokens)
        return prompt

    def _answer(self, prompt: Prompt) -> Answer:
        if self._protocol.beams > 1:
            return self.encode().search_prompt(prompt, self._protocol.beams, self._protocol.min_new_tokens)
        return last_answer(self.encode().stream_prompt(prompt, self._choose(), use_ilvc=self._use_ilvc))

    @property
    def _use_ilvc(self) -> bool:
        return encodes_regions(self._protocol.ilvc)

    def _choose(self) -> Sampler:
        """Return a greedy sampler for one answer; it counts the tokens."""
        tokens = self._lira.manifest.tokens
        banned = banned_tokens(self._protocol.ilvc, tokens)
        early, later = make_sampler(banned=(*banned, *tokens.eos[1:])), make_sampler(banned=banned)
        left = self._protocol.min_new_tokens

        def choose(logits: np.ndarray) -> int:
            nonlocal left
            left -= 1
            return early(logits) if left >= 0 else later(logits)

        return choose


def _plain(question: Question, answer: Answer) -> dict[str, Any]:
    """Return the answer for JSON, without timings, so that two runs give the same lines."""
    plain = runtime_report.as_dict(answer)
    del plain["timings"]
    for mask in plain["masks"]:
        mask["score"] = rounded(mask["score"], 4)
    return {"task": question.task, "question": question.text, **plain}
