"""Items with repeated ids, or with parts of another image, are left out by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lira_engine.errors import LiraError

if TYPE_CHECKING:
    from .conftest import Annotated

POLYGON = [[1, 1, 5, 1, 5, 5]]
LARGE = 10**400


def image(number: Any, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"{number}.jpg", "height": 12, "width": 10, **changes}


def annotation(number: Any, of: Any, **changes: Any) -> dict[str, Any]:
    return {"id": number, "image_id": of, "segmentation": POLYGON, **changes}


def ref(number: Any, ann_id: Any, image_id: Any, **changes: Any) -> dict[str, Any]:
    sentences = [{"sent": "it"}]
    return {"ref_id": number, "ann_id": ann_id, "image_id": image_id, "sentences": sentences, **changes}


@pytest.fixture
def coco(annotated: Annotated) -> Annotated:
    """Three images with an annotation each, and the second image's id on a fourth one."""
    images = [image(1), image(2), image(3), image(2, file_name="other.jpg")]
    annotations = [
        annotation(10, 1),
        annotation(20, 2),
        annotation(30, 3),
        annotation(31, 3),
        annotation(31, 1),
    ]
    annotated.write("instances.json", {"images": images, "annotations": annotations})
    return annotated


def test_refs_with_repeated_ids_are_left_out(coco: Annotated) -> None:
    refs = [
        ref(0, 10, 1),
        ref(1, 20, 2),
        ref(2, 30, 1),
        ref(3, 31, 3),
        ref(4, [30, 10], 3),
        ref(5, 30, 3),
        ref(5, 10, 1),
        ref(6, 30, 3),
    ]
    coco.write("refs.json", refs)
    assert coco.reasons("refseg") == {
        "refs.json[1]": "instances.json has image 2 twice, expected it once",
        "refs.json[2]": "annotation 30 is of image 3, the ref is about image 1",
        "refs.json[3]": "instances.json has annotation 31 twice, expected it once",
        "refs.json[4]": "annotation 10 is of image 1, the ref is about image 3",
        "refs.json[5]": "ref_id 5 occurs twice, expected once",
        "refs.json[6]": "ref_id 5 occurs twice, expected once",
    }
    assert [item.image for item in coco.read("refseg").items] == ["1.jpg", "3.jpg"]


@pytest.mark.parametrize("number", [1.0, True, "1", None, LARGE, -LARGE, float("inf"), float("nan"), [1], {}])
def test_refs_with_invalid_ids_are_left_out(coco: Annotated, number: Any) -> None:
    refs = [ref(0, number, 1), ref(1, 10, number), ref(2, [number], 1), ref(3, 10, 1)]
    coco.write("refs.json", refs)
    reasons = coco.reasons("refseg")
    assert set(reasons) >= {"refs.json[0]", "refs.json[1]"} and "refs.json[3]" not in reasons
    assert all(len(reason) < 150 for reason in reasons.values())


def test_an_annotation_without_its_image_is_left_out(coco: Annotated) -> None:
    for stated in ({}, {"image_id": 1.0}, {"image_id": None}):
        lost = {key: value for key, value in annotation(10, 1).items() if key != "image_id"} | stated
        coco.write("instances.json", {"images": [image(1)], "annotations": [lost]})
        coco.write("refs.json", [ref(0, 10, 1)])
        assert "image_id" in coco.reasons("refseg")["refs.json[0]"]


def test_an_empty_list_of_annotations_is_not_no_target(coco: Annotated) -> None:
    coco.write("refs.json", [ref(0, [], 1), ref(1, [-1], 1)])
    assert list(coco.reasons("refseg")) == ["refs.json[0]"]


@pytest.mark.parametrize(
    ("height", "width"), [(-12, 10), (12, 0), (LARGE, 10), (12.0, 10), (12, "10"), (12, 70_000)]
)
def test_impossible_image_sizes_are_left_out(coco: Annotated, height: Any, width: Any) -> None:
    content = {"images": [image(1, height=height, width=width)], "annotations": [annotation(10, 1)]}
    coco.write("instances.json", content)
    coco.write("refs.json", [ref(0, 10, 1)])
    (reason,) = coco.reasons("refseg").values()
    assert ("height" in reason or "width" in reason) and len(reason) < 120


# --- grounded captions --------------------------------------------------------------------------------


def test_repeated_ids_of_grandf_are_left_out(annotated: Annotated) -> None:
    captions = {
        "images": [{"id": 1}, {"id": "1"}, {"id": 2}, {"id": 3}, {"id": 4}, {"id": 5}],
        "annotations": [
            {"image_id": number, "labels": ["a dog"]} for number in (1, 2, 2, "3", 4, [[]])
        ] + [{"image_id": 5, "labels": [7]}],
    }  # fmt: skip
    masks = [annotation(number, of) for number, of in ((1, 1), (2, 2), (3, 3), (4, 4), (4, 9), (5, 5))]
    annotated.write("val_gcg_coco_caption_gt.json", captions)
    annotated.write("val_gcg_coco_mask_gt.json", {"annotations": masks})
    reasons = annotated.reasons("gcg")
    assert [key[-2] for key in reasons] == ["0", "1", "2", "4", "5"]
    assert list(reasons.values()) == [
        "image '1' occurs twice, expected once",
        "image '1' occurs twice, expected once",
        "image '2' has 2 captions, expected one",
        "mask 4 occurs twice, expected once",
        "the labels of image '5' are not a list of texts",
    ]
    assert [item.image for item in annotated.read("gcg").items] == ["3.jpg"]


def test_repeated_ids_of_the_training_form_are_left_out(annotated: Annotated) -> None:
    entry = {"file_name": "1.jpg", "groundings": {}}
    annotated.write("gcg.json", [{**entry, "image_id": number} for number in (1, 2, 1)] + [entry])
    reason = "image 1 occurs twice, expected once"
    assert annotated.reasons("gcg") == {"gcg.json[0]": reason, "gcg.json[2]": reason}


def test_splits_of_grandf_are_listed(annotated: Annotated) -> None:
    for split in ("val", "test"):
        annotated.write(f"{split}_gcg_coco_caption_gt.json", {"images": [], "annotations": []})
        annotated.write(f"{split}_gcg_coco_mask_gt.json", {"annotations": []})
    for asked in ("train", "*", "", "../val", "/val"):
        with pytest.raises(LiraError, match=r"has no split .* it has: test, val"):
            annotated.read("gcg", split=asked)
    with pytest.raises(LiraError, match="is not of split 'val': leave --split out"):
        annotated.read("gcg", "test_gcg_coco_caption_gt.json", split="val")


# --- questions ----------------------------------------------------------------------------------------


def test_questions_with_repeated_ids_are_left_out(annotated: Annotated) -> None:
    line = {"image": "a.jpg", "question": "What?", "answer": "cat", "text": "What?", "label": "yes"}
    entries = [{**line, "question_id": number} for number in (1, 2, 1, "1", 1.0, LARGE, LARGE)] + [line, line]
    for task, name in (("vqa", "vqa.jsonl"), ("pope", "pope.jsonl")):
        annotated.write_lines(name, entries)
        reasons = annotated.reasons(task)
        assert list(reasons) == [f"{name}:{number}" for number in (1, 3, 6, 7)]
        assert reasons[f"{name}:1"] == "question_id 1 occurs twice, expected once"
        assert reasons[f"{name}:7"] == "question_id a number of 401 digits occurs twice, expected once"


def pair(number: Any, answer: str, **changes: Any) -> dict[str, Any]:
    return {"image": "a.jpg", "question": f"{answer}?", "answer": answer, "pair_id": number, **changes}


def test_pairs_with_repeated_ids_are_left_out(annotated: Annotated) -> None:
    entries = [pair(n, a) for n in (1, 1, 2) for a in ("yes", "no")] + [pair(True, "yes"), pair(3.0, "no")]
    annotated.write_lines("attreval.jsonl", entries)
    reasons = annotated.reasons("attreval")
    assert reasons["attreval.jsonl:1"] == "4 questions in the pair, expected two"
    assert set(reasons) == {f"attreval.jsonl:{number}" for number in (1, 7, 8)}
    (item,) = annotated.read("attreval").items
    assert item.key == "attreval.jsonl:5"


def test_a_question_id_in_two_pairs_leaves_both_out(annotated: Annotated) -> None:
    entries = [
        pair(n, a, question_id=q) for q, (n, a) in enumerate((n, a) for n in (1, 2) for a in ("yes", "no"))
    ]
    entries[2]["question_id"] = 0
    annotated.write_lines("attreval.jsonl", entries)
    reason = "question_id 0 occurs twice, expected once"
    assert annotated.reasons("attreval") == {"attreval.jsonl:1": reason, "attreval.jsonl:3": reason}


def test_ids_of_unusable_entries_do_not_count(annotated: Annotated) -> None:
    line = {"question_id": 1, "image": "a.jpg", "text": "Is it?", "label": "no"}
    annotated.write_lines("pope.jsonl", [line, {**line, "label": "maybe"}])
    assert list(annotated.reasons("pope")) == ["pope.jsonl:2"] and len(annotated.read("pope").items) == 1


def test_a_broken_line_leaves_other_pairs_complete(annotated: Annotated) -> None:
    lines: list[object] = [{k: v for k, v in pair(0, a).items() if k != "pair_id"} for a in ("yes", "no") * 3]
    lines[1] = "{broken"
    annotated.write_lines("refcoco_attri.jsonl", lines)
    assert set(annotated.reasons("attreval")) == {"refcoco_attri.jsonl:1", "refcoco_attri.jsonl:2"}
    keys = [item.key for item in annotated.read("attreval").items]
    assert keys == ["refcoco_attri.jsonl:3", "refcoco_attri.jsonl:5"]


def test_expressions_with_repeated_ids_are_left_out(annotated: Annotated) -> None:
    line = {"image": "a.jpg", "expression": "it", "words": ["red", "blue"], "answer": "red"}
    annotated.write_lines("attributes.jsonl", [{**line, "question_id": number} for number in (1, 2, 2)])
    assert len(annotated.read("attreval").items) == 1 and len(annotated.reasons("attreval")) == 2
