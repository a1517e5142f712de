"""Grounded captions in the training forms of RefCOCOg and Flickr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lira_bench.accuracy import segmentation
from lira_engine.errors import LiraError
from lira_runtime import rle

if TYPE_CHECKING:
    from .conftest import Annotated

HEIGHT, WIDTH = 40, 50
POLYGON = [[3, 2, 9, 2, 9, 7, 3, 7]]
MASK = np.zeros((HEIGHT, WIDTH), dtype=bool)
MASK[2:7, 3:9] = True
REFS, FLICKR = "RefCOCOg_GCG_train.json", "flickr_mergedGT_GCG_train.json"


def entry(number: str, *refs: dict[str, Any], **changes: Any) -> dict[str, Any]:
    caption = "A Dog beside a red car."
    return {number: {"img_file_name": f"{number}.jpg", "caption": caption, "refs": list(refs), **changes}}


def ref(sentence: Any, **changes: Any) -> dict[str, Any]:
    return {
        "sentence": sentence,
        "bbox": [3, 2, 6, 5],
        "segmentation": POLYGON,
        "seg_img_path": "x.jpg",
        **changes,
    }


def test_refcocog_keeps_the_refs_in_its_caption(annotated: Annotated) -> None:
    annotated.write(REFS, [entry("7", ref("A dog"), ref("the horse"), ref("red car"))])
    (item,) = annotated.read("gcg").items
    assert (item.image, item.truth["phrases"], item.size) == ("7.jpg", ["A dog", "red car"], None)
    assert np.array_equal(segmentation.decode(item.masks[0], HEIGHT, WIDTH), MASK)


def test_damaged_entries_of_refcocog_are_left_out(annotated: Annotated) -> None:
    entries = [
        entry("1", ref("a dog")),
        entry("1", ref("red car")),
        entry("2", ref(5)),
        entry("3", {"sentence": "a dog"}),
        entry("4", caption=None),
        entry("5", img_file_name=["x"]),
        entry("6", refs={}),
        {},
        None,
        entry("7", ref("a dog")) | entry("8"),
    ]
    annotated.write(REFS, entries)
    reasons = annotated.reasons("gcg")
    assert list(reasons) == [f"{REFS}[{index}]" for index in range(len(entries))]
    assert reasons[f"{REFS}[1]"] == "image '1' occurs twice, expected once"
    assert reasons[f"{REFS}[3]"] == "key 'segmentation' is missing"


def test_null_phrases_of_openpsg_are_skipped(annotated: Annotated) -> None:
    groundings = {"a dog": {"token_positives": [0, 5], "rle_masks": [rle.encode(MASK)]}, "a mood": None}
    annotated.write(
        "OpenPsgGCG_train.json", [{"file_name": "1.jpg", "caption": "x", "groundings": groundings}]
    )
    (item,) = annotated.read("gcg").items
    assert item.truth["phrases"] == ["a dog"]


def image(number: Any, **changes: Any) -> dict[str, Any]:
    sizes = {"height": HEIGHT, "width": WIDTH}
    return {"id": number, "file_name": f"{number}.jpg", "caption": "a dog and a cat", **sizes, **changes}


def annotation(number: Any, of: Any, span: Any = (0, 5), **changes: Any) -> dict[str, Any]:
    common = {"bbox": [3, 2, 6, 5], "area": 30, "sam_mask": rle.encode(MASK), "tokens_positive": [span]}
    return {"id": number, "image_id": of, **common, **changes}


def test_flickr_has_a_mask_per_span(annotated: Annotated) -> None:
    found = [
        annotation(1, 5),
        annotation(2, 5, (10, 15)),
        annotation(3, 5, ignore=1),
        annotation(4, 5, bbox=[3, 2, 0.5, 5]),
        annotation(5, 5, bbox=[WIDTH, 2, 5, 5]),
        annotation(6, 5, area=0),
    ]
    annotated.write(FLICKR, {"images": [image(5), image(6)], "annotations": found})
    first, second = annotated.read("gcg").items
    assert (first.image, first.truth["phrases"], first.size) == ("5.jpg", ["a dog", "a cat"], (HEIGHT, WIDTH))
    assert np.array_equal(segmentation.decode(first.masks[1], HEIGHT, WIDTH), MASK)
    assert (second.image, second.masks) == ("6.jpg", ())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"id": 2}, "annotation 2 occurs twice, expected once"),
        ({"id": 1.5}, "key 'id' is 1.5, expected int or str"),
        ({"tokens_positive": [[0, 99]]}, "spans of the caption"),
        ({"tokens_positive": [[0, 10**400]]}, "spans of the caption"),
        ({"tokens_positive": [[-5, -1]]}, "spans of the caption"),
        ({"tokens_positive": [5]}, "spans of the caption"),
        ({"tokens_positive": []}, "spans of the caption"),
        ({"bbox": [10**400, 0.5, 1, 1]}, "expected pixels"),
        ({"bbox": [0, 0, float("inf"), 1]}, "expected pixels"),
        ({"area": float("nan")}, "expected pixels"),
        ({"bbox": [1, 2, 3]}, "expected pixels"),
        ({"sam_mask": "abc"}, "key 'sam_mask' is 'abc', expected dict or list"),
    ],
)
def test_damaged_annotations_of_flickr_are_left_out(
    annotated: Annotated, changes: dict[str, Any], said: str
) -> None:
    found = [annotation(1, 5, **changes), annotation(2, 6)]
    annotated.write(FLICKR, {"images": [image(5), image(7)], "annotations": found})
    (reason,) = annotated.reasons("gcg").values()
    assert said in reason and len(annotated.read("gcg").items) == 1


@pytest.mark.parametrize(
    "changes", [{"height": -1}, {"width": 10**400}, {"caption": 5}, {"file_name": ""}, {"id": 7}]
)
def test_damaged_images_of_flickr_are_left_out(annotated: Annotated, changes: dict[str, Any]) -> None:
    annotated.write(FLICKR, {"images": [image(5, **changes), image(7)], "annotations": []})
    assert f"{FLICKR}.images[0]" in annotated.reasons("gcg")


def test_an_object_of_another_form_is_refused(annotated: Annotated) -> None:
    annotated.write(FLICKR, {"images": []})
    with pytest.raises(LiraError, match="no lists 'images' and 'annotations'"):
        annotated.read("gcg")
