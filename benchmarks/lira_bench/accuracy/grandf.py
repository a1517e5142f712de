"""Read grounded captions in each form in which they are published.

Training files: a list of {file_name, caption, groundings: {phrase: {token_positives, rle_masks}}} (GranD-f
and OpenPSG), or the forms of gcg_training. Validation and test: two COCO files,
SPLIT_gcg_coco_caption_gt.json (per image a caption and its phrases as `labels`) and
SPLIT_gcg_coco_mask_gt.json (one mask per phrase, in the same order); an image's file is named by its id.
Source: mbzuai-oryx/groundingLMM, dataset/gcg_datasets/GranDf_gcg_ds.py and eval/gcg/evaluate.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from lira_bench.accuracy import gcg_training
from lira_bench.accuracy.files import Annotations, need, need_text, repeated, short, unrepeated
from lira_bench.accuracy.items import Dataset, Entry, LeftOut, Source
from lira_engine.errors import LiraError

CAPTIONS, MASKS = "_gcg_coco_caption_gt.json", "_gcg_coco_mask_gt.json"
FILES = ("gcg.json", f"*{CAPTIONS}", "*GCG*.json")


def read(source: Source) -> Dataset:
    """Return an item per image. `split` chooses val or test if a folder has both. Entries with repeated ids
    are left out."""
    files = Annotations(source.data)
    path = files.find(*FILES) if source.split is None else files.folder / _of_split(files.folder, source)
    if path.name.endswith((CAPTIONS, MASKS)):
        prefix = path.name.removesuffix(CAPTIONS).removesuffix(MASKS)
        entries = list(
            _of_coco(files, files.folder / f"{prefix}{CAPTIONS}", files.folder / f"{prefix}{MASKS}")
        )
    else:
        entries = list(_of_training(files, path))
    return Dataset(tuple(entries[: source.limit]), files.hashes)


def _of_split(folder: Path, source: Source) -> str:
    """Return the name of the captions file of `--split`."""
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(CAPTIONS))
    wanted = f"{source.split}{CAPTIONS}"
    if source.data.is_file() and source.data.name not in (wanted, f"{source.split}{MASKS}"):
        raise LiraError(f"{source.data} is not of split {source.split!r}: leave --split out")
    if not names:
        raise LiraError(f"{folder} has no splits of GranD-f: leave --split out")
    if wanted not in names:
        splits = ", ".join(name.removesuffix(CAPTIONS) for name in names)
        raise LiraError(f"{folder} has no split {source.split!r} of GranD-f; it has: {splits}")
    return wanted


def _of_training(files: Annotations, path: Path) -> Iterator[Entry]:
    content = files.json(path, (list, dict))
    if isinstance(content, dict):
        if not all(isinstance(content.get(key), list) for key in ("images", "annotations")):
            raise LiraError(f"{path} has no lists 'images' and 'annotations', expected Flickr's COCO form")
        yield from gcg_training.of_flickr(path.name, content)
        return
    yield from unrepeated("image", (_of_entry(f"{path.name}[{i}]", entry) for i, entry in enumerate(content)))


def _of_entry(key: str, entry: Any) -> tuple[str, list[object], list[Entry]]:
    if gcg_training.is_refcocog(entry):
        return key, list(entry), [gcg_training.of_refcocog(key, entry)]
    number = entry.get("image_id") if isinstance(entry, dict) else None
    return key, [number], [_of_groundings(key, entry)]


def _of_groundings(key: str, entry: Any) -> Entry:
    try:
        name = need_text(entry, "file_name")
        # null: the phrase is about nothing in the image.
        found = {phrase: g for phrase, g in need(entry, "groundings", dict).items() if g is not None}
        masks = [_masks_of(phrase, grounding) for phrase, grounding in found.items()]
        spans = [grounding.get("token_positives") for grounding in found.values()]
        size, caption = gcg_training.stated_size(entry), entry.get("caption")
        return gcg_training.item(key, name, list(found), masks, size, caption, spans)
    except LiraError as error:
        return LeftOut(key, str(error))


def _masks_of(phrase: str, grounding: Any) -> list[Any]:
    try:
        masks: list[Any] = need(grounding, "rle_masks", list)
    except LiraError as error:
        raise LiraError(f"phrase {short(phrase)}: {error}") from None
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
    described, masked = _by_image(captions["annotations"]), _by_image(masks["annotations"])
    twice = repeated(a.get("id") for a in masks["annotations"] if isinstance(a, dict))
    again = repeated(_name(image.get("id")) for image in captions["images"] if isinstance(image, dict))
    for index, image in enumerate(captions["images"]):
        key = f"{captions_path.name}.images[{index}]"
        try:
            image_id = str(need(image, "id", (str, int)))
            if image_id in again:
                raise LiraError(f"image {short(image_id)} occurs twice, expected once")
            phrases = _phrases(image_id, described[image_id])
            segmentations = _segmentations(masked[image_id], twice)
            if len(segmentations) != len(phrases):
                raise LiraError(
                    f"image {short(image_id)} has {len(phrases)} labels and {len(segmentations)} masks"
                )
            name = need_text(image, "file_name") if "file_name" in image else f"{image_id}.jpg"
            size, caption = gcg_training.stated_size(image), described[image_id][0].get("caption")
            yield gcg_training.item(key, name, phrases, segmentations, size, caption)
        except LiraError as error:
            yield LeftOut(key, str(error))


def _by_image(annotations: list[Any]) -> dict[str | None, list[dict[str, Any]]]:
    """Return annotations by image id, as text: files mix texts and numbers."""
    found: dict[str | None, list[dict[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        if isinstance(annotation, dict):
            found[_name(annotation.get("image_id"))].append(annotation)
    return found


def _name(image_id: object) -> str | None:
    return str(image_id) if type(image_id) in (int, str) else None


def _phrases(image_id: str, captions: list[dict[str, Any]]) -> list[str]:
    if len(captions) > 1:
        raise LiraError(f"image {short(image_id)} has {len(captions)} captions, expected one")
    labels = captions[0].get("labels") if captions else None
    if not isinstance(labels, list):
        raise LiraError(f"image {short(image_id)} has no caption with 'labels'")
    if not all(isinstance(label, str) for label in labels):
        raise LiraError(f"the labels of image {short(image_id)} are not a list of texts")
    return labels


def _segmentations(annotations: list[dict[str, Any]], twice: Collection[object]) -> list[Any]:
    for annotation in annotations:
        number = annotation.get("id")
        if isinstance(number, int | str) and number in twice:
            raise LiraError(f"mask {short(number)} occurs twice, expected once")
    return [need(annotation, "segmentation", (dict, list)) for annotation in annotations]
