from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from lira_nano.__main__ import main
from lira_nano.scenes import render_scene


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    code = stopped.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("scenes") / "deep" / "er"
    assert run("scenes", "--seed", 9, "--count", 5, "-o", target, "--size", 128) == 0
    return target


def load(folder: Path, name: str) -> list[dict] | dict:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_images_and_masks_equal_the_scenes(folder: Path) -> None:
    instances = load(folder, "instances.json")
    assert len(instances["images"]) == 5
    categories = {category["id"]: category["name"] for category in instances["categories"]}
    annotations = iter(instances["annotations"])
    for image in instances["images"]:
        scene = render_scene(9, image["id"], 128)
        with Image.open(folder / "images" / image["file_name"]) as picture:
            assert np.array_equal(np.asarray(picture), scene.image)
        for item in scene.objects:
            annotation = next(annotations)
            assert annotation["image_id"] == image["id"]
            assert categories[annotation["category_id"]] == item.category
            assert np.array_equal(coco_mask.decode(annotation["segmentation"]).astype(bool), item.mask)
            assert annotation["area"] == item.mask.sum()
            assert annotation["bbox"] == coco_mask.toBbox(annotation["segmentation"]).tolist()
    assert next(annotations, None) is None


def test_refs_point_at_annotations(folder: Path) -> None:
    annotations = {
        annotation["id"]: annotation for annotation in load(folder, "instances.json")["annotations"]
    }
    refs = load(folder, "refs.json")
    assert [ref["ref_id"] for ref in refs] == list(range(len(refs)))
    sentences = [sentence for ref in refs for sentence in ref["sentences"]]
    assert sorted(sentence["sent_id"] for sentence in sentences) == list(range(len(sentences)))
    for ref in refs:
        annotation = annotations[ref["ann_id"]]
        assert ref["image_id"] == annotation["image_id"]
        assert ref["category_id"] == annotation["category_id"]
        if ref["kind"] == "name":
            assert [sentence["sent"] for sentence in ref["sentences"]] == [f"the {annotation['name']}"]
    assert {ref["ann_id"] for ref in refs if ref["kind"] == "name"} == set(annotations)


def test_groundings_have_the_form_of_grandf(folder: Path) -> None:
    of_image: dict[int, list[dict]] = {}
    for annotation in load(folder, "instances.json")["annotations"]:
        of_image.setdefault(annotation["image_id"], []).append(annotation)
    grounded = load(folder, "gcg.json")
    assert len(grounded) == 5
    for entry in grounded:
        annotations = of_image[entry["image_id"]]
        assert (entry["height"], entry["width"]) == (128, 128)
        assert len(entry["groundings"]) == len(annotations)
        for (phrase, grounding), annotation in zip(entry["groundings"].items(), annotations, strict=True):
            start, end = grounding["token_positives"]
            assert entry["caption"][start:end] == phrase
            assert phrase.endswith(annotation["name"])
            assert grounding["rle_masks"] == [annotation["segmentation"]]


def lines(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def test_questions_come_in_pairs(folder: Path) -> None:
    questions = lines(folder, "vqa.jsonl")
    assert len(questions) % 2 == 0
    assert [question["question_id"] for question in questions] == list(range(len(questions)))
    for number, (yes, no) in enumerate(zip(questions[::2], questions[1::2], strict=True)):
        assert yes["pair_id"] == no["pair_id"] == number
        assert (yes["answer"], no["answer"]) == ("Yes", "No")
        assert yes["kind"] == no["kind"] and yes["image"] == no["image"]
        assert (folder / "images" / yes["image"]).is_file()


def test_existence_questions_have_the_form_of_pope(folder: Path) -> None:
    asked = [q for q in lines(folder, "vqa.jsonl") if q["kind"] == "existence"]
    pope = lines(folder, "pope.jsonl")
    assert [(q["image"], q["text"], q["label"]) for q in pope] == [
        (q["image"], q["question"], q["answer"].lower()) for q in asked
    ]
    assert [q["question_id"] for q in pope] == list(range(len(pope)))


def test_attributes_are_true_of_the_object_and_not_named_by_the_expression(folder: Path) -> None:
    attributes = lines(folder, "attributes.jsonl")
    assert {entry["kind"] for entry in attributes} == {"color", "category", "location"}
    for entry in attributes:
        scene = render_scene(9, int(Path(entry["image"]).stem), 128)
        wanted = entry["expression"].removeprefix("the ").removesuffix(" shape")
        (item,) = [item for item in scene.objects if wanted in (item.category, item.color)]
        x, y = item.center
        sides = {"left": x < 0.4, "right": x > 0.6, "top": y < 0.4, "bottom": y > 0.6}
        true = {
            "color": [item.color],
            "category": [item.category],
            "location": [side for side, fits in sides.items() if fits],
        }
        assert entry["answer"] == true[entry["kind"]] != []
        assert set(entry["answer"]) < set(entry["words"])
        assert not set(entry["expression"].split()) & set(entry["words"])


def test_a_folder_with_content_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(folder.rglob("*"))
    assert run("scenes", "--seed", 1, "--count", 1, "-o", folder) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error and str(folder) in error
    assert sorted(folder.rglob("*")) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing",),
        ("scenes",),
        ("scenes", "--seed", -1, "--count", 1, "-o", "x"),
        ("scenes", "--seed", 1, "--count", 0, "-o", "x"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert not list(tmp_path.iterdir())


def test_writing_scenes_needs_no_torch() -> None:
    code = "import sys, lira_nano.dataset, lira_nano.tokenizer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
