"""VQA's own pair of files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lira_engine.errors import LiraError

if TYPE_CHECKING:
    from .conftest import Annotated

QUESTIONS, ANNOTATIONS = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"


def question(number: Any, image: Any = 42, **changes: Any) -> dict[str, Any]:
    return {"question_id": number, "image_id": image, "question": "What is it?", **changes}


def answers(number: Any, image: Any = 42, *given: Any) -> dict[str, Any]:
    listed = [
        {"answer": text, "answer_id": i, "answer_confidence": "yes"}
        for i, text in enumerate(given or ["cat"] * 10)
    ]
    return {"question_id": number, "image_id": image, "multiple_choice_answer": "cat", "answers": listed}


def write(annotated: Annotated, questions: list[Any], found: list[Any], **header: Any) -> None:
    of = {"data_type": "mscoco", "data_subtype": "val2014", "task_type": "Open-Ended", **header}
    annotated.write(QUESTIONS, {**of, "questions": questions})
    annotated.write(ANNOTATIONS, {**of, "annotations": found})


def test_the_published_pair_of_files_is_read(annotated: Annotated) -> None:
    write(annotated, [question(420), question(421, 581929)], [answers(421, 581929, "a", "b"), answers(420)])
    dataset = annotated.read("vqa", instruction="One word.")
    first, second = dataset.items
    assert (first.image, second.image) == ("COCO_val2014_000000000042.jpg", "COCO_val2014_000000581929.jpg")
    assert first.key == f"{QUESTIONS}.questions[0]" and first.questions[0].text == "What is it? One word."
    assert first.truth["answers"] == ["cat"] * 10 and second.truth["answers"] == ["a", "b"]
    assert set(dataset.files) == {QUESTIONS, ANNOTATIONS}
    for named in (QUESTIONS, ANNOTATIONS):
        assert len(annotated.read("vqa", named, limit=1).entries) == 1


def test_answers_of_another_image_are_left_out(annotated: Annotated) -> None:
    asked = [question(n) for n in (1, 2, 3, 3, 4, 5.0)] + [
        question(6, 10**400),
        question(7, -1),
        question(8, 1.5),
    ]
    asked += [{"question_id": 9, "question": "What?"}, "nonsense", question(10)]
    found = [answers(n) for n in (1, 3, 4, 4)] + [answers(2, 43), answers(6, 10**400), answers(7, -1)]
    found += [answers(8, 1.5), {"question_id": 9, "answers": [{"answer": "x"}]}, answers(10, 42, 5)]
    write(annotated, asked, found)
    reasons = annotated.reasons("vqa")
    assert list(reasons.values()) == [
        "question 2 is about image 42, its answers are about 43",
        "question_id 3 occurs twice, expected once",
        "question_id 3 occurs twice, expected once",
        f"{ANNOTATIONS} has answers to question 4 twice, expected it once",
        "key 'question_id' is 5.0, expected int or str",
        "key 'image_id' is a number of 401 digits, expected at most 12 digits",
        "key 'image_id' is -1, expected at most 12 digits",
        "key 'image_id' is 1.5, expected int or str",
        "key 'image_id' is missing",
        "found 'nonsense', expected an object",
        "key 'answer' is 5, expected str",
    ]
    assert [item.key for item in annotated.read("vqa").items] == [f"{QUESTIONS}.questions[0]"]


def test_a_question_without_answers_is_left_out(annotated: Annotated) -> None:
    write(annotated, [question(1), question(2)], [answers(1)])
    assert annotated.reasons("vqa") == {
        f"{QUESTIONS}.questions[1]": f"{ANNOTATIONS} has no answers to question 2"
    }


def test_a_test_split_without_annotations_is_refused(annotated: Annotated) -> None:
    name = "v2_OpenEnded_mscoco_test2015_questions.json"
    annotated.write(name, {"data_subtype": "test2015", "questions": [question(1)]})
    with pytest.raises(LiraError, match=r"has no v2_mscoco_test2015_annotations\.json beside it.*server"):
        annotated.read("vqa")


def test_files_of_several_splits_need_a_choice(annotated: Annotated) -> None:
    write(annotated, [question(1)], [answers(1)])
    annotated.write(QUESTIONS.replace("val", "train"), {"questions": []})
    with pytest.raises(LiraError, match="choose one, --data"):
        annotated.read("vqa")
    assert len(annotated.read("vqa", ANNOTATIONS).items) == 1
    (annotated.folder / QUESTIONS).unlink()
    with pytest.raises(LiraError, match="needs its questions beside it, one file; found none"):
        annotated.read("vqa", ANNOTATIONS)


@pytest.mark.parametrize(
    ("header", "image", "name"),
    [
        ({"data_subtype": "test-dev2015"}, 7, "COCO_test2015_000000000007.jpg"),
        (
            {"data_type": "abstract_v002", "data_subtype": "val2015"},
            7,
            "abstract_v002_val2015_000000000007.png",
        ),
        ({}, "VizWiz_val_00000000.jpg", "VizWiz_val_00000000.jpg"),
    ],
)
def test_images_are_named_by_split_and_number(
    annotated: Annotated, header: dict[str, Any], image: Any, name: str
) -> None:
    write(annotated, [question(1, image)], [answers(1, image)], **header)
    assert [item.image for item in annotated.read("vqa").items] == [name]


@pytest.mark.parametrize(
    "header", [{"data_type": "flickr"}, {"data_type": {}}, {"data_subtype": 2014}, {"data_subtype": None}]
)
def test_images_without_a_name_are_left_out(annotated: Annotated, header: dict[str, Any]) -> None:
    write(annotated, [question(1)], [answers(1)], **header)
    assert next(iter(header)) in annotated.reasons("vqa")[f"{QUESTIONS}.questions[0]"]


def test_files_of_another_form_are_refused(annotated: Annotated) -> None:
    annotated.write(QUESTIONS, {"questions": {}})
    annotated.write(ANNOTATIONS, {"annotations": []})
    with pytest.raises(LiraError, match="has no list 'questions'"):
        annotated.read("vqa")
