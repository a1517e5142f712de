"""CHAIR: objects that a caption mentions, and objects in the image."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from lira_bench.accuracy import chair
from lira_bench.accuracy.object_words import ObjectWords, read_synonyms
from lira_engine.errors import LiraError

if TYPE_CHECKING:
    from .conftest import Annotated, Evaluate

KINDS = {
    "person": "person", "dog": "animal", "bird": "animal", "train": "vehicle", "hot dog": "food",
    "toilet": "furniture", "chair": "furniture", "wine glass": "kitchen", "knife": "kitchen",
    "sheep": "animal", "mouse": "electronic",
    "tie": "accessory", "fire hydrant": "outdoor", "bus": "vehicle", "teddy bear": "indoor",
}  # fmt: skip
SYNONYMS = {
    "person": ["man", "child", "baby", "adult", "passenger"],
    "dog": ["puppy"],
    "chair": ["seat"],
    "tie": ["bow", "bow tie"],
}


@pytest.mark.parametrize(
    ("text", "mentioned"),
    [
        ("A dog, and another DOG.", ["dog", "dog"]),
        ("Two dogs beside puppies and people", ["dog", "dog", "person"]),
        ("A hot dog. Hot-dogs!", ["hot dog", "hot dog"]),
        ("It is hot. Dogs pant.", ["dog"]),
        (
            "men, women, children, knives, mice, sheep and buses",
            ["person", "person", "person", "knife", "mouse", "sheep", "bus"],
        ),
        ("wine glasses; a glass of wine", ["wine glass"]),
        ("a baby bird, adult dogs, a baby", ["bird", "dog", "person"]),
        ("a passenger train on train tracks with passengers", ["train", "person"]),
        ("a toilet seat", ["toilet"]),
        ("the seat of the toilet", ["toilet"]),
        ("the seat of the bus", ["chair", "bus"]),
        ("a bow tie", ["tie"]),
        ("the dog's collar, dogged, hotdog", ["dog"]),
        ("fire hydrants and a teddy-bear", ["fire hydrant", "teddy bear"]),
        ("", []),
    ],
)
def test_mentioned_objects_are_found_in_a_text(text: str, mentioned: list[str]) -> None:
    synonyms = {**SYNONYMS, "person": [*SYNONYMS["person"], "woman"]}
    assert ObjectWords(KINDS, synonyms).mentioned(text) == mentioned


def test_the_published_synonyms_are_read() -> None:
    text = "person, man,  child\r\n\ndog, puppy,\n"
    assert read_synonyms("synonyms.txt", text, KINDS) == {"person": ["man", "child"], "dog": ["puppy"]}
    with pytest.raises(
        LiraError, match=r"synonyms\.txt:2 begins with 'cat', expected the name of a category"
    ):
        read_synonyms("synonyms.txt", "dog, puppy\ncat, kitten\n", KINDS)
    with pytest.raises(LiraError, match="'pup' is a word of 'dog' and of 'bird'"):
        ObjectWords({"dog": "", "bird": ""}, {"dog": ["pup"], "bird": ["pup"]})


# --- the data -----------------------------------------------------------------------------------------


def image(number: Any, **changes: Any) -> dict[str, Any]:
    return {"id": number, "file_name": f"COCO_{number}.jpg", "height": 12, "width": 10, **changes}


def annotation(number: Any, of: Any, category: Any = 1, **changes: Any) -> dict[str, Any]:
    return {"id": number, "image_id": of, "category_id": category, **changes}


CATEGORIES = [{"id": 1, "name": "dog", "supercategory": "animal"}, {"id": 2, "name": "person"}]


@pytest.fixture
def coco(annotated: Annotated) -> Annotated:
    images = [image(number) for number in range(1, 8)] + [image(7)]
    annotations = [
        annotation(1, 1),
        annotation(2, 1),
        annotation(3, 1, 2),
        annotation(4, 2, 9),
        annotation(5, 3),
    ]
    annotations += [annotation(5, 4), annotation(6, 5, 10**400)]
    annotated.write(
        "instances_val2014.json", {"images": images, "annotations": annotations, "categories": CATEGORIES}
    )
    return annotated


def test_objects_come_from_the_instances(coco: Annotated) -> None:
    first, sixth = coco.read("chair").items
    assert (first.image, first.size, first.truth["objects"]) == ("COCO_1.jpg", (12, 10), ["dog", "person"])
    assert first.questions[0].task == "caption" and sixth.truth["objects"] == []
    name = "instances_val2014.json"
    assert coco.reasons("chair") == {
        f"{name}.images[1]": f"annotation 4: {name} has no category 9",
        f"{name}.images[2]": f"{name} has annotation 5 twice, expected it once",
        f"{name}.images[3]": f"{name} has annotation 5 twice, expected it once",
        f"{name}.images[4]": f"annotation 6: {name} has no category a number of 401 digits",
        f"{name}.images[6]": f"{name} has image 7 twice, expected it once",
        f"{name}.images[7]": f"{name} has image 7 twice, expected it once",
    }


def test_objects_also_come_from_captions(coco: Annotated) -> None:
    captions = [
        {"id": 1, "image_id": 6, "caption": "Children with a puppy"},
        {"id": 2, "image_id": 1, "caption": 5},
    ]
    coco.write("captions_val2014.json", {"annotations": captions})
    coco.write("synonyms.txt", "dog, puppy\nperson, child\n".encode("utf-8-sig"))
    dataset = coco.read("chair")
    (sixth,) = dataset.items
    assert sixth.truth["objects"] == ["dog", "person"]
    assert set(dataset.files) == {"instances_val2014.json", "captions_val2014.json", "synonyms.txt"}
    assert "captions_val2014.json: key 'caption' is 5, expected str" in coco.reasons("chair").values()


def test_images_are_chosen_as_upstream_does(coco: Annotated) -> None:
    line = {"question": "Please describe this image in detail.", "answer": ""}
    named = {**line, "question_id": 1, "image": "data/coco/val2014/COCO_1.jpg"}
    other = {**line, "question_id": 6, "image": "data/coco/val2014/COCO_5.jpg"}
    coco.write_lines("chair_test.jsonl", [named, other, {**line, "question_id": 99}, line, "{"])
    (item,) = coco.read("chair").items
    assert item.key == "chair_test.jsonl:1" and item.image == "COCO_1.jpg"
    assert coco.reasons("chair") == {
        "chair_test.jsonl:2": "image 6 is 'COCO_6.jpg', the line names 'data/coco/val2014/COCO_5.jpg'",
        "chair_test.jsonl:3": "instances_val2014.json has no image 99",
        "chair_test.jsonl:4": "key 'image_id' is None, expected int or str",
        "chair_test.jsonl:5": coco.reasons("chair")["chair_test.jsonl:5"],
    }
    coco.write_lines("chair_test.jsonl", [{"image_id": 1}, {"image_id": 1}, {"image_id": 6}])
    assert len(coco.read("chair").items) == 1
    assert len(coco.read("chair", "instances_val2014.json").entries) == 8


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"images": [], "annotations": []}, "has no list 'categories'"),
        ({"images": [], "annotations": [], "categories": [{"id": 1}]}, "no categories with names"),
    ],
)
def test_instances_of_another_form_are_refused(annotated: Annotated, content: object, said: str) -> None:
    with pytest.raises(LiraError, match=r"holds no instances\.json or instances\*\.json"):
        annotated.read("chair")
    annotated.write("instances.json", content)
    with pytest.raises(LiraError, match=said):
        annotated.read("chair")


# --- the figures --------------------------------------------------------------------------------------


def test_figures_match_a_count_by_hand() -> None:
    words = ObjectWords(KINDS, SYNONYMS)
    captions = [("A dog, a puppy and a train", ["dog", "person"]), ("A bird", ["bird"]), ("Nothing", ["bus"])]
    scored: list[Any] = []
    for text, objects in captions:
        item: Any = SimpleNamespace(truth={"objects": objects, "words": words})
        answer: Any = SimpleNamespace(text=text)
        scored.append((item, {"scores": chair.judge(item, [answer], [])}))
    assert chair.total(scored) == {
        "chair_i": 0.25,  # the train, of four mentions
        "chair_s": 0.333333,
        "recall": 0.5,  # dog and bird, of dog, person, bird and bus
        "captions": 3,
        "mentions": 4,
        "objects": 4,
    }
    assert chair.total(scored[2:])["chair_i"] is None
    assert chair.total([])["chair_s"] is None


def test_every_named_object_of_a_caption_is_a_mention(evaluate: Evaluate) -> None:
    assert evaluate("chair", "out", "--require", "chair_i=0.2", "--require", "recall=0.5") == 0
    metrics = evaluate.report("out")["metrics"]
    samples = evaluate.samples("out")
    said = [len(sample["answers"][0]["text"].replace(" and ", ", ").split(", ")) for sample in samples]
    assert (metrics["captions"], metrics["mentions"]) == (len(samples), sum(said))
    assert evaluate("chair", "out", "--require", "recall=1", "--require", "chair_i=-1") == 2
