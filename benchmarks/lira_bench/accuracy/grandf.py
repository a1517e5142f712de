"""Grounded captions in both forms that GranD-f is published in.

Training files: a list of {file_name, caption, groundings: {phrase: {token_positives, rle_masks}}}. Validation
and test: two COCO files, SPLIT_gcg_coco_caption_gt.json (per image a caption and its phrases as `labels`) and
SPLIT_gcg_coco_mask_gt.json (one mask per phrase, in the same order); an image's file is named by its id.
Source: mbzuai-oryx/groundingLMM, dataset/gcg_datasets/GranDf_gcg_ds.py and eval/gcg/evaluate.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lira_bench.accuracy.files import Annotations, need, need_text
from lira_bench.accuracy.items import Dataset, Entry, Item, LeftOut, Question, Source
from lira_engine.errors import LiraError

CAPTIONS, MASKS = "_gcg_coco_caption_gt.json", "_gcg_coco_mask_gt.json"


def read(source: Source) -> Dataset:
    """One item per image. `split` chooses between val and test where a folder holds both."""
    files = Annotations(source.data)
    pattern = f"{source.split or '*'}{CAPTIONS}"
    path = files.find("gcg.json", pattern, "*GCG*.json")
    if path.name.endswith((CAPTIONS, MASKS)):
        prefix = path.name.removesuffix(CAPTIONS).removesuffix(MASKS)
        entries = list(
            _of_coco(files, files.folder / f"{prefix}{CAPTIONS}", files.folder / f"{prefix}{MASKS}")
        )
    elif source.split is not None:
        raise LiraError(f"{path} has no splits: leave --split out")
    else:
        entries = [
            _of_groundings(f"{path.name}[{i}]", entry) for i, entry in enumerate(files.json(path, list))
        ]
    return Dataset(tuple(entries[: source.limit]), files.hashes)


def _of_groundings(key: str, entry: Any) -> Entry:
    try:
        name = need_text(entry, "file_name")
        groundings = need(entry, "groundings", dict)
        masks = [_masks_of(phrase, grounding) for phrase, grounding in groundings.items()]
        size = _stated_size(entry)
    except LiraError as error:
        return LeftOut(key, str(error))
    return _item(key, name, list(groundings), masks, size)


def _masks_of(phrase: str, grounding: Any) -> list[Any]:
    try:
        masks: list[Any] = need(grounding, "rle_masks", list)
    except LiraError as error:
        raise LiraError(f"phrase {phrase!r}: {error}") from None
    return masks


def _of_coco(files: Annotations, captions_path: Path, masks_path: Path) -> Iterator[Entry]:
    captions, masks = files.json(captions_path, dict), files.json(masks_path, dict)
    for path, content, key in (
        (captions_path, captions, "images"),
        (captions_path, captions, "annotations"),
        (masks_path, masks, "annotations"),
    ):
        if not isinstance(content.get(key), list):
            raise LiraError(f"{path} has no list {key!r}, expected GranD-f's COCO form")
    of_image: dict[str, list[Any]] = defaultdict(list)
    for annotation in masks["annotations"]:
        if isinstance(annotation, dict):
            of_image[str(annotation.get("image_id"))].append(annotation)
    labels = {str(a.get("image_id")): a.get("labels") for a in captions["annotations"] if isinstance(a, dict)}
    for index, image in enumerate(captions["images"]):
        key = f"{captions_path.name}.images[{index}]"
        try:
            image_id = str(need(image, "id", (str, int)))
            phrases = labels.get(image_id)
            if not isinstance(phrases, list):
                raise LiraError(f"image {image_id!r} has no caption with 'labels'")
            segmentations = [need(a, "segmentation", (dict, list)) for a in of_image[image_id]]
            if len(segmentations) != len(phrases):
                raise LiraError(
                    f"image {image_id!r} has {len(phrases)} labels and {len(segmentations)} masks"
                )
            name = need_text(image, "file_name") if "file_name" in image else f"{image_id}.jpg"
            size = _stated_size(image)
        except LiraError as error:
            yield LeftOut(key, str(error))
            continue
        yield _item(key, name, [str(phrase) for phrase in phrases], segmentations, size)


def _stated_size(entry: Any) -> tuple[int, int] | None:
    if "height" not in entry:
        return None
    return need(entry, "height", int), need(entry, "width", int)


def _item(key: str, name: str, phrases: list[str], masks: list[Any], size: tuple[int, int] | None) -> Item:
    truth = {"phrases": [phrase.strip('"').strip() for phrase in phrases]}
    return Item(key, name, (Question("gcg"),), truth, tuple(masks), size)
