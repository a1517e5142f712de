"""Referring segmentation: RefCOCO's refs and instances -> cIoU and gIoU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lira_bench.accuracy.files import Annotations, need, need_text
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
from lira_bench.metrics import SegmentationScore, intersection_and_union
from lira_engine.errors import LiraError

if TYPE_CHECKING:
    from lira_runtime import Answer

PICKLES = (".p", ".pkl", ".pickle")
_CONVERT = (
    "python -c \"import json, pickle, sys; json.dump(pickle.load(open(sys.argv[1], 'rb')), "
    "open(sys.argv[2], 'w'))\""
)


def read(source: Source) -> Dataset:
    """`refs.json` (or `refs(unc).json`, ...) and `instances.json` of one folder, one item per sentence.

    A ref: ref_id, ann_id, image_id, split and sentences [{sent}]. Masks are the annotations' polygons or run
    lengths; images are named by instances.json, as the refs' own file_name carries the annotation's number.
    Raises LiraError for a pickle, which is what RefCOCO is published as: it is never opened.
    """
    files = Annotations(source.data)
    path = _refs_file(files, source.data)
    refs = files.json(path, list)
    instances_path = files.folder / "instances.json"
    instances = files.json(instances_path, dict)
    for key in ("images", "annotations"):
        if not isinstance(instances.get(key), list):
            raise LiraError(f"{instances_path} has no list {key!r}, expected COCO instances")
    split = _check_split(path, refs, source.split)
    images, annotations = _by_id(instances["images"]), _by_id(instances["annotations"])
    entries: list[Entry] = []
    for index, ref in enumerate(refs):
        entries += _entries(f"{path.name}[{index}]", ref, images, annotations, split)
        if source.limit is not None and len(entries) >= source.limit:
            break
    return Dataset(tuple(entries[: source.limit]), files.hashes)


def _refs_file(files: Annotations, data: Path) -> Path:
    pickled = data if data.suffix in PICKLES else None
    found = None if pickled else (data if data.is_file() else files.find_optional("refs.json", "refs*.json"))
    if found is not None:
        return found
    pickled = pickled or next((p for p in sorted(files.folder.glob("refs*")) if p.suffix in PICKLES), None)
    if pickled is None:
        raise LiraError(f"{files.folder} holds no refs.json or refs*.json")
    raise LiraError(
        f"{pickled} is a pickle, which can run any code when opened; expected JSON. If you trust its source: "
        f"{_CONVERT} '{pickled}' '{pickled.with_suffix('.json')}'"
    )


def _by_id(listed: list[Any]) -> dict[int, Any]:
    return {
        entry["id"]: entry for entry in listed if isinstance(entry, dict) and isinstance(entry.get("id"), int)
    }


def _check_split(path: Path, refs: list[Any], asked: str | None) -> str | None:
    named = [ref.get("split") for ref in refs if isinstance(ref, dict)]
    splits = sorted({name for name in named if isinstance(name, str)})
    if asked is None and len(splits) > 1:
        raise LiraError(f"{path} has the splits {', '.join(splits)}: choose one, --split {splits[0]}")
    if asked is not None and asked not in splits:
        raise LiraError(f"{path} has no split {asked!r}; it has: {', '.join(splits) or 'none'}")
    return asked


def _entries(
    key: str, ref: Any, images: dict[int, Any], annotations: dict[int, Any], split: str | None
) -> Iterator[Entry]:
    try:
        if split is not None and need(ref, "split", str) != split:
            return
        annotation_id, image_id = need(ref, "ann_id", int), need(ref, "image_id", int)
        sentences = need(ref, "sentences", list)
        if annotation_id not in annotations or image_id not in images:
            lacking = f"image {image_id}" if image_id not in images else f"annotation {annotation_id}"
            raise LiraError(f"instances.json has no {lacking}")
        image = images[image_id]
        name = need_text(image, "file_name")
        size = (need(image, "height", int), need(image, "width", int))
        mask = need(annotations[annotation_id], "segmentation", (list, dict))
    except LiraError as error:
        yield LeftOut(key, str(error))
        return
    for number, sentence in enumerate(sentences):
        place = f"{key}.sentences[{number}]"
        try:
            expression = need_text(sentence, "sent")
        except LiraError as error:
            yield LeftOut(place, str(error))
            continue
        yield Item(place, name, (Question("refseg", expression),), {}, (mask,), size)


def judge(item: Item, answers: Sequence[Answer], masks: Sequence[np.ndarray]) -> dict[str, Any]:
    """The answer's first mask beside the true one; an answer without a mask counts as an empty one."""
    found = answers[0].masks[0].binary if answers[0].masks else np.zeros_like(masks[0])
    intersection, union = intersection_and_union(found, masks[0])
    return {
        "intersection": intersection,
        "union": union,
        "iou": rounded(intersection / union if union else 1.0),
    }


def total(scored: Sequence[tuple[Item, Record]]) -> Metrics:
    """cIoU: all intersections over all unions. gIoU: the mean of the IoUs."""
    score = SegmentationScore(
        [record["scores"]["intersection"] for _, record in scored],
        [record["scores"]["union"] for _, record in scored],
    )
    if not scored:
        return {"ciou": None, "giou": None, "expressions": 0, "without_mask": 0}
    without = sum(not record["answers"][0]["masks"] for _, record in scored)
    ciou = rounded(score.ciou) if any(score.unions) else None
    return {"ciou": ciou, "giou": rounded(score.giou), "expressions": len(scored), "without_mask": without}


TASK = Task("refseg", read, judge, total, has_splits=True)
