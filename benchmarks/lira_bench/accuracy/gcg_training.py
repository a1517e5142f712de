"""Read grounded captions in GLaMM's training forms of RefCOCOg and Flickr.

Source: mbzuai-oryx/groundingLMM, dataset/gcg_datasets, and the LIRA repository, omg_llava/dataset.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lira_bench.accuracy.files import need, need_size, need_text, repeated, short
from lira_bench.accuracy.items import Entry, Item, LeftOut, Question
from lira_engine.errors import LiraError

_FAR = 1e9  # pixels; larger numbers are damage, and their sums may overflow


def item(
    key: str,
    name: str,
    phrases: Sequence[str],
    masks: Sequence[Any],
    size: tuple[int, int] | None,
    caption: object = None,
    spans: Sequence[object] = (),
) -> Item:
    """Return the item of a grounded caption: its phrases and, in their order, their masks.

    `caption` and the phrases' `spans` in it are not judged, and so not checked; training reads them.
    """
    truth = {
        "phrases": [phrase.strip('"').strip() for phrase in phrases],
        "caption": caption,
        "spans": list(spans),
    }
    return Item(key, name, (Question("gcg"),), truth, tuple(masks), size)


def stated_size(entry: Any) -> tuple[int, int] | None:
    """Return (height, width) if the entry has them, else None."""
    return need_size(entry) if "height" in entry else None


def is_refcocog(entry: Any) -> bool:
    """Return whether an entry has the form {id: {img_file_name, caption, refs: [...]}} of RefCOCOg_GCG."""
    return isinstance(entry, Mapping) and len(entry) == 1 and isinstance(next(iter(entry.values())), Mapping)


def of_refcocog(key: str, entry: Mapping[str, Any]) -> Entry:
    """Return the item of an entry, with the refs whose sentence occurs in the caption, as upstream does."""
    (inner,) = entry.values()
    try:
        name, caption = need_text(inner, "img_file_name"), need_text(inner, "caption").lower()
        refs = [ref for ref in need(inner, "refs", list) if need_text(ref, "sentence").lower() in caption]
        masks = [need(ref, "segmentation", (dict, list)) for ref in refs]
        return item(key, name, [ref["sentence"] for ref in refs], masks, stated_size(inner), inner["caption"])
    except LiraError as error:
        return LeftOut(key, str(error))


def of_flickr(name: str, content: Mapping[str, Any]) -> Iterator[Entry]:
    """Yield the items of a COCO file with a caption per image, and per annotation a span of the caption
    (`tokens_positive`) and a `sam_mask`."""
    images, annotations = content["images"], [a for a in content["annotations"] if isinstance(a, dict)]
    again = repeated(image.get("id") for image in images if isinstance(image, dict))
    twice = repeated(annotation.get("id") for annotation in annotations)
    of_image: dict[object, list[dict[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        if type(annotation.get("image_id")) in (int, str):
            of_image[annotation["image_id"]].append(annotation)
    for index, image in enumerate(images):
        key = f"{name}.images[{index}]"
        try:
            number = need(image, "id", (int, str))
            if number in again:
                raise LiraError(f"image {short(number)} occurs twice, expected once")
            yield _of_flickr(key, image, of_image[number], twice)
        except LiraError as error:
            yield LeftOut(key, str(error))


def _of_flickr(key: str, image: Any, annotations: Sequence[Mapping[str, Any]], twice: set[object]) -> Item:
    file, size, caption = need_text(image, "file_name"), need_size(image), need_text(image, "caption")
    phrases, masks, spans = [], [], []
    for annotation in annotations:
        number = need(annotation, "id", (int, str))
        if number in twice:
            raise LiraError(f"annotation {short(number)} occurs twice, expected once")
        if annotation.get("ignore") or _is_empty(annotation, size):
            continue
        start, end = _span(annotation, caption)
        phrases.append(caption[start:end])
        spans.append((start, end))
        masks.append(need(annotation, "sam_mask", (dict, list)))
    return item(key, file, phrases, masks, size, caption, spans)


def _is_empty(annotation: Mapping[str, Any], size: tuple[int, int]) -> bool:
    """Return whether upstream's reader skips the box: thinner than a pixel, empty, or outside the image."""
    box, area = need(annotation, "bbox", list), need(annotation, "area", (int, float))
    if len(box) != 4 or not all(type(v) in (int, float) and -_FAR <= v <= _FAR for v in (*box, area)):
        raise LiraError(f"key 'bbox' is {short(box)} and 'area' {short(area)}, expected pixels")
    left, top, wide, high = box
    beside = left >= size[1] or top >= size[0] or left + wide <= 0 or top + high <= 0
    return beside or not (area > 0 and wide >= 1 and high >= 1)


def _span(annotation: Mapping[str, Any], caption: str) -> tuple[int, int]:
    spans = need(annotation, "tokens_positive", list)
    first = spans[0] if spans and isinstance(spans[0], list) else []
    if (
        len(first) != 2
        or not all(type(end) is int for end in first)
        or not 0 <= first[0] < first[1] <= len(caption)
    ):
        raise LiraError(f"key 'tokens_positive' is {short(spans)}, expected spans of the caption")
    return first[0], first[1]
