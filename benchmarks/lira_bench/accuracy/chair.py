"""CHAIR: objects that a caption mentions although they are not in the image.

Source: Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018; the paper's section 3
measures LIRA with it, with ILVC and without.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from lira_bench.accuracy.files import (
    Annotations,
    ById,
    need,
    need_size,
    need_text,
    repeated,
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
    rounded,
)
from lira_bench.accuracy.object_words import ObjectWords, read_synonyms
from lira_bench.accuracy.protocol import STRICT, Protocol
from lira_engine.errors import LiraError

if TYPE_CHECKING:
    from lira_runtime import Answer

INSTANCES = ("instances.json", "instances*.json")
CAPTIONS = ("captions.json", "captions*.json")
CHOSEN = ("chair.jsonl", "*chair*.jsonl")
SYNONYMS = "synonyms.txt"


def read(source: Source) -> Dataset:
    """Return an item per image of COCO's instances, or per image that chair.jsonl names (`image_id`, or
    upstream's `question_id`).

    An image's objects are those of its annotations and, if captions.json is there, those that its captions
    mention. Words for an object: the category's name and, if synonyms.txt is there, the further words. Images
    with repeated ids, or with annotations that have them, are left out.
    """
    files = Annotations(source.data)
    given = source.data if source.data.is_file() else None
    path = given if given and given.suffix != ".jsonl" else files.find_optional(*INSTANCES)
    if path is None:
        raise LiraError(f"{files.folder} holds no {' or '.join(INSTANCES)}")
    chosen = (
        given if given and given.suffix == ".jsonl" else files.find_optional(*CHOSEN) if not given else None
    )
    content = _lists(files, path, "images", "annotations", "categories")
    words = _object_words(files, content["categories"])
    there = _Objects()
    there.add_instances(path, content)
    captions_path = files.find_optional(*CAPTIONS)
    if captions_path is not None:
        there.add_captions(captions_path, _lists(files, captions_path, "annotations"), words)
    images = ById(path.name, "image", content["images"])
    found: list[tuple[str, list[object], list[Entry]]] = []
    for key, line in _wanted(files, path, content["images"], chosen):
        if isinstance(line, LeftOut):
            found.append((key, [], [line]))
        else:
            found.append((key, [line["image_id"]], [_entry(key, line, images, there, words)]))
    entries = list(unrepeated("image", found))
    return Dataset(tuple(entries[: source.limit]), files.hashes)


def _wanted(
    files: Annotations, path: Path, images: list[Any], chosen: Path | None
) -> Iterator[tuple[str, dict[str, Any] | LeftOut]]:
    """Yield (key, {image_id, and `image` if the file names it}) per image to ask about."""
    if chosen is None:
        for index, image in enumerate(images):
            yield (
                f"{path.name}.images[{index}]",
                {"image_id": image.get("id") if isinstance(image, dict) else None},
            )
        return
    lines = list(files.lines(chosen))
    known = any(isinstance(line, dict) and "image_id" in line for _, line in lines)
    for key, line in lines:
        if isinstance(line, LeftOut):
            yield key, line
        else:
            number = line.get("image_id" if known else "question_id")
            yield key, {"image_id": number} | ({"image": line["image"]} if "image" in line else {})


def _entry(key: str, wanted: Mapping[str, Any], images: ById, there: _Objects, words: ObjectWords) -> Entry:
    try:
        number = need(wanted, "image_id", (int, str))
        image = images[number]
        name, size = need_text(image, "file_name"), need_size(image)
        if "image" in wanted and PurePath(need_text(wanted, "image")).name != PurePath(name).name:
            raise LiraError(
                f"image {short(number)} is {short(name)}, the line names {short(wanted['image'])}"
            )
        if number in there.unknown:
            raise LiraError(there.unknown[number])
        truth = {"objects": sorted(there.of_image[number]), "words": words}
    except LiraError as error:
        return LeftOut(key, str(error))
    return Item(key, name, (Question("caption"),), truth, size=size)


@dataclass
class _Objects:
    """Names of the objects in each image, or the reason why they are unknown."""

    of_image: dict[object, set[str]] = field(default_factory=lambda: defaultdict(set))
    unknown: dict[object, str] = field(default_factory=dict)

    def add_instances(self, path: Path, content: Mapping[str, Any]) -> None:
        categories = ById(path.name, "category", content["categories"])
        for image_id, annotation in self._known(path, content["annotations"]):
            try:
                category = categories[need(annotation, "category_id", (int, str))]
                self.of_image[image_id].add(need_text(category, "name"))
            except LiraError as error:
                self.unknown[image_id] = f"annotation {short(annotation.get('id'))}: {error}"

    def add_captions(self, path: Path, content: Mapping[str, Any], words: ObjectWords) -> None:
        for image_id, annotation in self._known(path, content["annotations"]):
            try:
                self.of_image[image_id].update(words.mentioned(need_text(annotation, "caption")))
            except LiraError as error:
                self.unknown[image_id] = f"{path.name}: {error}"

    def _known(self, path: Path, annotations: list[Any]) -> Iterator[tuple[object, dict[str, Any]]]:
        again = repeated(a.get("id") for a in annotations if isinstance(a, dict))
        for annotation in annotations:
            if not isinstance(annotation, dict) or type(annotation.get("image_id")) not in (int, str):
                continue  # of no image
            image_id, number = annotation["image_id"], annotation.get("id")
            if type(number) in (int, str) and number in again:
                self.unknown[image_id] = f"{path.name} has annotation {short(number)} twice, expected it once"
            else:
                yield image_id, annotation


def _object_words(files: Annotations, categories: list[Any]) -> ObjectWords:
    named = [c for c in categories if isinstance(c, dict) and isinstance(c.get("name"), str)]
    if not named:
        raise LiraError(f"{files.folder}: the instances have no categories with names, expected COCO's")
    kinds = {c["name"]: c["supercategory"] if isinstance(c.get("supercategory"), str) else "" for c in named}
    path = files.find_optional(SYNONYMS)
    return ObjectWords(kinds, {} if path is None else read_synonyms(path.name, files.text(path), kinds))


def _lists(files: Annotations, path: Path, *keys: str) -> dict[str, Any]:
    content: dict[str, Any] = files.json(path, dict)
    for key in keys:
        if not isinstance(content.get(key), list):
            raise LiraError(f"{path} has no list {key!r}, expected COCO's form")
    return content


def judge(
    item: Item, answers: Sequence[Answer], masks: Sequence[np.ndarray], protocol: Protocol = STRICT
) -> dict[str, Any]:
    """Return the categories that the caption mentions, with repetitions, and those in the image."""
    words: ObjectWords = item.truth["words"]
    return {"mentioned": words.mentioned(answers[0].text), "objects": item.truth["objects"]}


def total(scored: Sequence[tuple[Item, Record]], protocol: Protocol = STRICT) -> Metrics:
    """Return the metrics.

    chair_i: share of the mentions whose object is not in the image. chair_s: share of the captions with such
    a mention. recall: share of the objects in the images that are mentioned.
    """
    mentions = wrong = captions = objects = found = 0
    for _, record in scored:
        said, true = record["scores"]["mentioned"], set(record["scores"]["objects"])
        false = sum(name not in true for name in said)
        mentions, wrong, captions = mentions + len(said), wrong + false, captions + (false > 0)
        objects, found = objects + len(true), found + len(true.intersection(said))
    return {
        "chair_i": rounded(wrong / mentions) if mentions else None,
        "chair_s": rounded(captions / len(scored)) if scored else None,
        "recall": rounded(found / objects) if objects else None,
        "captions": len(scored),
        "mentions": mentions,
        "objects": objects,
    }


TASK = Task("chair", read, judge, total)
