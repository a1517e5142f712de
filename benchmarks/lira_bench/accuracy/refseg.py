"""Referring segmentation: cIoU and gIoU on RefCOCO's refs and instances.

gRefCOCO's expressions that name several objects, or none, are scored as GRES defines it (Liu et al., CVPR
2023; henghuiding/ReLA, gres_model/evaluation/refer_evaluation.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

FILES = ("refs.json", "refs*.json", "grefs*.json")
NO_TARGET = -1  # gRefCOCO's ann_id of an expression without a target
PICKLES = (".p", ".pkl", ".pickle")
_CONVERT = (
    "python -c \"import json, pickle, sys; json.dump(pickle.load(open(sys.argv[1], 'rb')), "
    "open(sys.argv[2], 'w'))\""
)


def read(source: Source) -> Dataset:
    """Return an item per sentence of `refs.json` (or `refs(unc).json`, `grefs(unc).json`, ...), with the
    masks of `instances.json` in the same folder.

    A ref: ann_id, image_id, split and sentences [{sent}]. ann_id is a number or, in gRefCOCO, a list of
    numbers, whose union is the true mask; [-1] means no target. Masks are polygons or run lengths. Images are
    named by instances.json, as a ref's own file_name has the annotation's number in it. A ref whose ids occur
    twice, or whose annotation is of another image, is left out. Raises LiraError for a pickle, the form in
    which RefCOCO is published: it is never opened.
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
    names = _category_names(instances)
    found = _of_refs(path.name, refs, images, annotations, names, split)
    entries: list[Entry] = list(unrepeated("ref_id", found))
    return Dataset(tuple(entries[: source.limit]), files.hashes)


def _refs_file(files: Annotations, data: Path) -> Path:
    pickled = data if data.suffix in PICKLES else None
    found = None if pickled else (data if data.is_file() else files.find_optional(*FILES))
    if found is not None:
        return found
    pickled = pickled or next((p for p in sorted(files.folder.glob("refs*")) if p.suffix in PICKLES), None)
    if pickled is None:
        raise LiraError(f"{files.folder} holds no {', '.join(FILES[:-1])} or {FILES[-1]}")
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
    name: str,
    refs: list[Any],
    images: ById,
    annotations: ById,
    names: Mapping[int, str],
    split: str | None,
) -> Iterator[tuple[str, list[object], list[Entry]]]:
    for index, ref in enumerate(refs):
        key = f"{name}[{index}]"
        number = ref.get("ref_id") if isinstance(ref, dict) else None
        yield key, [number], list(_entries(key, ref, images, annotations, names, split))


def _category_names(instances: Mapping[str, Any]) -> dict[int, str]:
    """Return the names of well-formed categories by number; no score depends on them."""
    listed = instances.get("categories")
    return {
        one["id"]: one["name"]
        for one in (listed if isinstance(listed, list) else ())
        if isinstance(one, dict) and type(one.get("id")) is int and isinstance(one.get("name"), str)
    }


def _entries(
    key: str, ref: Any, images: ById, annotations: ById, names: Mapping[int, str], split: str | None
) -> Iterator[Entry]:
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
        numbers = [annotation.get("category_id") for annotation in meant]
        truth = {
            "categories": [names[number] for number in numbers if type(number) is int and number in names]
        }
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
        yield Item(place, name, (Question("refseg", expression),), truth, masks, size)


def _annotation_ids(ref: Any) -> list[int]:
    """Return the annotations of an expression, none if it has no target."""
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
    """Return the intersection, union and IoU of the answer's first mask, or an empty one, with the union of
    the true `masks`. Two empty masks have IoU 1."""
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
    """Return the true mask as upstream computes it: the pixels that are 1 after it has summed the polygons of
    each annotation and joined the annotations by a bitwise or."""
    assert item.size is not None
    joined = np.zeros(item.size, dtype=np.int64)  # [H, W]
    for mask in item.masks:
        joined |= segmentation.layers(mask, *item.size)
    return np.asarray(joined == 1)


def total(scored: Sequence[tuple[Item, Record]], protocol: Protocol = STRICT) -> Metrics:
    """Return the metrics.

    ciou: sum of intersections over sum of unions. giou: mean IoU; an expression without a target counts 1 for
    an empty mask, else 0 (an answer without a mask: see Protocol.without_mask). If there are expressions
    without a target: n_acc, the share of them that got an empty mask or none, and t_acc, the share of the
    others that got a mask.
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


TASK = Task("refseg", read, judge, total, FILES, has_splits=True)
