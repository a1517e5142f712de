"""Referring segmentation: RefCOCO's refs and instances -> cIoU and gIoU.

gRefCOCO's expressions that name several objects, or none, are scored as GRES defines it (Liu et al., CVPR
2023; henghuiding/ReLA, gres_model/evaluation/refer_evaluation.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lira_bench.accuracy import segmentation
from lira_bench.accuracy.files import Annotations, ById, need, need_size, need_text, short, unrepeated
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
from lira_bench.metrics import SegmentationScore, intersection_and_union
from lira_engine.errors import LiraError

if TYPE_CHECKING:
    from lira_runtime import Answer

NO_TARGET = -1  # gRefCOCO's ann_id where the expression names nothing in the image
PICKLES = (".p", ".pkl", ".pickle")
_CONVERT = (
    "python -c \"import json, pickle, sys; json.dump(pickle.load(open(sys.argv[1], 'rb')), "
    "open(sys.argv[2], 'w'))\""
)


def read(source: Source) -> Dataset:
    """`refs.json` (or `refs(unc).json`, `grefs(unc).json`, ...) and `instances.json` of one folder, one item
    per sentence.

    A ref: ann_id, image_id, split and sentences [{sent}]. ann_id is a number or, in gRefCOCO, a list of them:
    all of them together are the true mask, and [-1] stands for none. Masks are the annotations' polygons or
    run lengths; images are named by instances.json, as the refs' own file_name carries the annotation's
    number. A ref whose ids occur twice, or whose annotation is of another image, is left out. Raises
    LiraError for a pickle, which is what RefCOCO is published as: it is never opened.
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
    images = ById(instances_path.name, "image", instances["images"])
    annotations = ById(instances_path.name, "annotation", instances["annotations"])
    entries: list[Entry] = list(unrepeated("ref_id", _of_refs(path.name, refs, images, annotations, split)))
    return Dataset(tuple(entries[: source.limit]), files.hashes)


def _refs_file(files: Annotations, data: Path) -> Path:
    names = ("refs.json", "refs*.json", "grefs*.json")
    pickled = data if data.suffix in PICKLES else None
    found = None if pickled else (data if data.is_file() else files.find_optional(*names))
    if found is not None:
        return found
    pickled = pickled or next((p for p in sorted(files.folder.glob("refs*")) if p.suffix in PICKLES), None)
    if pickled is None:
        raise LiraError(f"{files.folder} holds no {', '.join(names[:-1])} or {names[-1]}")
    raise LiraError(
        f"{pickled} is a pickle, which can run any code when opened; expected JSON. If you trust its source: "
        f"{_CONVERT} '{pickled}' '{pickled.with_suffix('.json')}'"
    )


def _check_split(path: Path, refs: list[Any], asked: str | None) -> str | None:
    named = [ref.get("split") for ref in refs if isinstance(ref, dict)]
    splits = sorted({name for name in named if isinstance(name, str)})
    listed = ", ".join(name[:40] for name in splits[:20]) or "none"
    if asked is None and len(splits) > 1:
        raise LiraError(f"{path} has the splits {listed}: choose one, --split {splits[0][:40]}")
    if asked is not None and asked not in splits:
        raise LiraError(f"{path} has no split {asked!r}; it has: {listed}")
    return asked


def _of_refs(
    name: str, refs: list[Any], images: ById, annotations: ById, split: str | None
) -> Iterator[tuple[str, list[object], list[Entry]]]:
    for index, ref in enumerate(refs):
        key = f"{name}[{index}]"
        number = ref.get("ref_id") if isinstance(ref, dict) else None
        yield key, [number], list(_entries(key, ref, images, annotations, split))


def _entries(key: str, ref: Any, images: ById, annotations: ById, split: str | None) -> Iterator[Entry]:
    try:
        if split is not None and need(ref, "split", str) != split:
            return
        wanted, image_id = _annotation_ids(ref), need(ref, "image_id", int)
        sentences = need(ref, "sentences", list)
        if not sentences:
            raise LiraError("key 'sentences' is an empty list")
        image = images[image_id]
        meant = [annotations[number] for number in wanted]
        for annotation in meant:
            found = need(annotation, "image_id", int)
            if found != image_id:
                raise LiraError(
                    f"annotation {short(annotation['id'])} is of image {short(found)}, "
                    f"the ref is about image {short(image_id)}"
                )
        name = need_text(image, "file_name")
        size = need_size(image)
        masks = tuple(need(annotation, "segmentation", (list, dict)) for annotation in meant)
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
        yield Item(place, name, (Question("refseg", expression),), {}, masks, size)


def _annotation_ids(ref: Any) -> list[int]:
    """The annotations that an expression means; none where it names nothing in the image."""
    found = need(ref, "ann_id", (int, list))
    listed = found if isinstance(found, list) else [found]
    if not listed:
        raise LiraError("key 'ann_id' is an empty list, expected annotations, or [-1] for none")
    if not all(type(number) is int for number in listed):
        raise LiraError("key 'ann_id' is a list with other things than whole numbers")
    return [] if listed == [NO_TARGET] else listed


def judge(
    item: Item, answers: Sequence[Answer], masks: Sequence[np.ndarray], protocol: Protocol = STRICT
) -> dict[str, Any]:
    """The answer's first mask beside the true one (the union of `masks`, empty for no target); an answer
    without a mask counts as an empty one. Two empty masks have IoU 1."""
    assert item.size is not None, "read() gives every item the image's size"
    truth = np.zeros(item.size, dtype=bool)  # [H, W]
    for mask in masks:
        truth |= mask
    if not protocol.overlaps:
        truth = _without_overlaps(item)
    found = answers[0].masks[0].binary if answers[0].masks else np.zeros_like(truth)
    intersection, union = intersection_and_union(found, truth)
    return {
        "intersection": intersection,
        "union": union,
        "iou": rounded(intersection / union if union else 1.0),
        "empty": not found.any(),
    }


def _without_overlaps(item: Item) -> np.ndarray:
    """As upstream adds up the polygons of an annotation and joins annotations bit by bit: what is then 1."""
    assert item.size is not None
    joined = np.zeros(item.size, dtype=np.int64)  # [H, W]
    for mask in item.masks:
        joined |= segmentation.layers(mask, *item.size)
    return np.asarray(joined == 1)


def total(scored: Sequence[tuple[Item, Record]], protocol: Protocol = STRICT) -> Metrics:
    """ciou: all intersections over all unions. giou: the mean of the IoUs, where an expression without a
    target counts 1 for an empty mask and 0 for any other (without a mask: see Protocol.without_mask).

    Where there are such expressions, also n_acc: the share of them that got an empty mask or none, and t_acc:
    the share of all others that got a mask.
    """
    if not scored:
        return {"ciou": None, "giou": None, "expressions": 0, "without_mask": 0}
    rated = [r for _, r in scored if protocol.without_mask or r["answers"][0]["masks"]]
    score = SegmentationScore(
        [record["scores"]["intersection"] for record in rated],
        [record["scores"]["union"] for record in rated],
    )
    empty: dict[bool, list[float]] = {True: [], False: []}  # of those with a target, of those without
    for item, record in scored:
        empty[bool(item.masks)].append(float(record["scores"]["empty"]))
    metrics: Metrics = {
        "ciou": rounded(score.ciou) if any(score.unions) else None,
        "giou": rounded(score.giou * len(rated) / len(scored)) if rated else 0.0,
        "expressions": len(scored),
        "without_mask": sum(not record["answers"][0]["masks"] for _, record in scored),
    }
    if empty[False]:
        metrics["n_acc"] = mean(empty[False])
        metrics["t_acc"] = mean([1 - value for value in empty[True]])
        metrics["no_target"] = len(empty[False])
    return metrics


TASK = Task("refseg", read, judge, total, has_splits=True)
