"""Annotation files in their published forms, and damaged ones."""

from __future__ import annotations

import json
import pickle
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lira_bench.accuracy import segmentation
from lira_bench.accuracy.files import image_path, images_folder
from lira_bench.accuracy.items import Dataset, LeftOut, Source
from lira_bench.accuracy.tasks import TASKS, task_named
from lira_engine.errors import LiraError
from lira_runtime import rle

HEIGHT, WIDTH = 12, 10
MASK = np.zeros((HEIGHT, WIDTH), dtype=bool)
MASK[2:7, 3:9] = True
POLYGON = [[3, 2, 9, 2, 9, 7, 3, 7]]
RUNS = {"size": [HEIGHT, WIDTH], "counts": [3 * HEIGHT + 2, 5, 7, 5, 7, 5, 7, 5, 7, 5, 7, 5, HEIGHT + 5]}


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_lines(path: Path, entries: Sequence[object]) -> Path:
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(task: str, data: Path, **options: Any) -> Dataset:
    return TASKS[task].read(Source(data, **options))


def reasons(dataset: Dataset) -> dict[str, str]:
    return {entry.key: entry.reason for entry in dataset.entries if isinstance(entry, LeftOut)}


# --- RefCOCO ------------------------------------------------------------------------------------------


def ref(number: int, split: str = "val", **changes: Any) -> dict[str, Any]:
    """Return a ref as in RefCOCO, whose file name, unlike the image's, has the annotation's number."""
    sentences = [
        {"sent_id": 2 * number + i, "sent": text, "raw": text} for i, text in enumerate(("Left", "it"))
    ]
    entry = {"ref_id": number, "ann_id": 70 + number, "image_id": 5, "split": split, "category_id": 1}
    return {**entry, "file_name": f"COCO_5_{number}.jpg", "sentences": sentences} | changes


@pytest.fixture
def refcoco(tmp_path: Path) -> Path:
    images = [{"id": 5, "file_name": "COCO_5.jpg", "height": HEIGHT, "width": WIDTH}]
    annotations = [
        {"id": 70 + i, "image_id": 5, "segmentation": stored} for i, stored in enumerate((POLYGON, RUNS))
    ]
    write(tmp_path / "instances.json", {"images": images, "annotations": annotations, "categories": []})
    write(tmp_path / "refs(unc).json", [ref(0), ref(1)])
    return tmp_path


def test_a_ref_gives_an_item_per_sentence(refcoco: Path) -> None:
    dataset = read("refseg", refcoco)
    assert [item.questions[0].text for item in dataset.items] == ["Left", "it", "Left", "it"]
    assert [item.masks[0] for item in dataset.items] == [POLYGON, POLYGON, RUNS, RUNS]
    assert {(item.image, item.size) for item in dataset.items} == {("COCO_5.jpg", (HEIGHT, WIDTH))}
    assert dataset.items[3].key == "refs(unc).json[1].sentences[1]"
    assert set(dataset.files) == {"refs(unc).json", "instances.json"}
    assert len(read("refseg", refcoco, limit=3).entries) == 3


def test_grefcoco_has_several_targets_or_none(refcoco: Path) -> None:
    (refcoco / "refs(unc).json").unlink()
    write(refcoco / "grefs(unc).json", [ref(0, ann_id=[70, 71]), ref(1, ann_id=[-1]), ref(1, ann_id=["70"])])
    dataset = read("refseg", refcoco)
    assert [item.masks for item in dataset.items] == [(POLYGON, RUNS)] * 2 + [()] * 2
    assert {item.size for item in dataset.items} == {(HEIGHT, WIDTH)}
    assert reasons(dataset) == {
        "grefs(unc).json[2]": "key 'ann_id' is a list with other things than whole numbers"
    }


def test_splits_are_chosen_by_name(refcoco: Path) -> None:
    write(refcoco / "refs(unc).json", [ref(0, "testA"), ref(1, "val")])
    with pytest.raises(LiraError, match=r"splits testA, val: choose one, --split testA"):
        read("refseg", refcoco)
    assert [item.key for item in read("refseg", refcoco, split="val").items] == [
        "refs(unc).json[1].sentences[0]",
        "refs(unc).json[1].sentences[1]",
    ]
    with pytest.raises(LiraError, match=r"no split 'testB'; it has: testA, val"):
        read("refseg", refcoco, split="testB")


def test_damaged_refs_are_named_and_the_rest_is_kept(refcoco: Path) -> None:
    no_annotation = ref(0)
    del no_annotation["ann_id"]
    damaged = [
        no_annotation,
        ref(0, ann_id=99),
        ref(0, image_id=6),
        "nonsense",
        ref(0, sentences=[{"sent": "good"}, {"tokens": []}, {"sent": "  "}, 7, {"sent": "half \ud800"}]),
    ]
    write(refcoco / "refs(unc).json", damaged)
    dataset = read("refseg", refcoco)
    assert reasons(dataset) == {
        "refs(unc).json[0]": "key 'ann_id' is missing",
        "refs(unc).json[1]": "instances.json has no annotation 99",
        "refs(unc).json[2]": "instances.json has no image 6",
        "refs(unc).json[3]": "found 'nonsense', expected an object",
        "refs(unc).json[4].sentences[1]": "key 'sent' is missing",
        "refs(unc).json[4].sentences[2]": "key 'sent' is empty",
        "refs(unc).json[4].sentences[3]": "found 7, expected an object",
        "refs(unc).json[4].sentences[4]": "key 'sent' is 'half \\ud800', no text",
    }
    assert [item.questions[0].text for item in dataset.items] == ["good"]


def test_pickled_refs_are_not_opened_and_the_error_converts_them(refcoco: Path) -> None:
    refs = json.loads((refcoco / "refs(unc).json").read_text())
    (refcoco / "refs(unc).json").unlink()
    pickled = refcoco / "refs(unc).p"
    pickled.write_bytes(pickle.dumps(refs, protocol=2))
    with pytest.raises(LiraError) as error:
        read("refseg", refcoco)
    message = str(error.value)
    assert "is a pickle" in message and "\n" not in message
    command = shlex.split(message.partition("If you trust its source: ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert len(read("refseg", refcoco).items) == 4
    with pytest.raises(LiraError, match="is a pickle"):
        read("refseg", pickled)


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


def test_a_hostile_pickle_is_not_run(refcoco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (refcoco / "refs(unc).json").unlink()
    (refcoco / "refs(unc).p").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(LiraError):
        read("refseg", refcoco)
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("instances.json", {"images": []}, "no list 'annotations'"),
        ("instances.json", [], "expected an object"),
        ("refs(unc).json", {"refs": []}, "expected a list"),
    ],
)
def test_whole_files_of_another_kind_are_errors(refcoco: Path, name: str, content: object, said: str) -> None:
    write(refcoco / name, content)
    with pytest.raises(LiraError) as error:
        read("refseg", refcoco)
    assert said in str(error.value) and name in str(error.value)


def test_invalid_json_and_missing_files_are_errors(refcoco: Path) -> None:
    (refcoco / "instances.json").write_text("{")
    with pytest.raises(LiraError, match=r"instances\.json is not JSON"):
        read("refseg", refcoco)
    (refcoco / "instances.json").unlink()
    with pytest.raises(LiraError, match=r"instances\.json: there is no such file"):
        read("refseg", refcoco)
    write(refcoco / "refs(google).json", [])
    with pytest.raises(LiraError, match=r"refs\(google\)\.json, refs\(unc\)\.json: choose one, --data"):
        read("refseg", refcoco)
    with pytest.raises(LiraError, match="no such folder"):
        read("refseg", refcoco / "nowhere")


# --- GranD-f ------------------------------------------------------------------------------------------


def grounding(mask: np.ndarray = MASK) -> dict[str, Any]:
    return {"token_positives": [0, 5], "rle_masks": [rle.encode(mask)]}


def test_the_training_form_of_grandf_is_read(tmp_path: Path) -> None:
    entries = [
        {"file_name": "1.jpg", "image_id": "1", "caption": "x", "groundings": {'"A dog"': grounding()}},
        {"file_name": "2.jpg", "caption": "x", "groundings": {"a cat": {"token_positives": [0, 5]}}},
        {"file_name": "3.jpg", "caption": "x"},
        {"file_name": "4.jpg", "caption": "x", "groundings": {}, "height": HEIGHT, "width": WIDTH},
    ]
    write(tmp_path / "GranDf_HA_GCG_train.json", entries)
    dataset = read("gcg", tmp_path)
    first, fourth = dataset.items
    assert (first.image, first.truth["phrases"], first.size) == ("1.jpg", ["A dog"], None)
    assert np.array_equal(segmentation.decode(first.masks[0], HEIGHT, WIDTH), MASK)
    assert (fourth.masks, fourth.size) == ((), (HEIGHT, WIDTH))
    assert list(reasons(dataset).values()) == [
        "phrase 'a cat': key 'rle_masks' is missing",
        "key 'groundings' is missing",
    ]


@pytest.fixture
def grandf(tmp_path: Path) -> Path:
    """Write the form of GranD-f's validation set: images are named by their ids."""
    captions = {
        "images": [{"id": "sa_1"}, {"id": "sa_2"}, {"id": "sa_3"}],
        "annotations": [
            {"image_id": "sa_1", "caption": "a dog and a cat", "labels": ["a dog", "a cat"]},
            {"image_id": "sa_3", "caption": "a dog", "labels": ["a dog"]},
        ],
    }
    masks = {
        "annotations": [
            {"id": i, "image_id": "sa_1", "category_id": 1, "segmentation": rle.encode(mask)}
            for i, mask in enumerate((MASK, ~MASK))
        ]
    }
    write(tmp_path / "val_gcg_coco_caption_gt.json", captions)
    write(tmp_path / "val_gcg_coco_mask_gt.json", masks)
    return tmp_path


def test_the_validation_form_of_grandf_is_read(grandf: Path) -> None:
    dataset = read("gcg", grandf)
    (item,) = dataset.items
    assert (item.image, item.truth["phrases"]) == ("sa_1.jpg", ["a dog", "a cat"])
    masks = [segmentation.decode(mask, HEIGHT, WIDTH) for mask in item.masks]
    assert np.array_equal(masks[0], MASK) and np.array_equal(masks[1], ~MASK)
    assert reasons(dataset) == {
        "val_gcg_coco_caption_gt.json.images[1]": "image 'sa_2' has no caption with 'labels'",
        "val_gcg_coco_caption_gt.json.images[2]": "image 'sa_3' has 1 labels and 0 masks",
    }
    assert set(dataset.files) == {"val_gcg_coco_caption_gt.json", "val_gcg_coco_mask_gt.json"}


def test_split_chooses_val_or_test_of_grandf(grandf: Path) -> None:
    for kind in ("caption", "mask"):
        source = grandf / f"val_gcg_coco_{kind}_gt.json"
        (grandf / f"test_gcg_coco_{kind}_gt.json").write_bytes(source.read_bytes())
    with pytest.raises(LiraError, match="choose one"):
        read("gcg", grandf)
    assert "test_gcg_coco_mask_gt.json" in read("gcg", grandf, split="test").files
    assert "val_gcg_coco_mask_gt.json" in read("gcg", grandf / "val_gcg_coco_caption_gt.json").files


# --- questions ----------------------------------------------------------------------------------------


def test_vqa_takes_an_answer_or_several(tmp_path: Path) -> None:
    common = {"image": "a.jpg", "question": "What?"}
    entries = [
        {**common, "answer": "cat"},
        {**common, "answers": ["cat", "dog"]},
        "",
        "{broken",
        "[]",
        {**common, "answers": []},
        {**common, "answer": 3},
        {"question": "What?", "answer": "cat"},
    ]
    data = write_lines(tmp_path / "vqav2_val.jsonl", entries)
    dataset = read("vqa", tmp_path, instruction="One word.")
    assert [item.truth["answers"] for item in dataset.items] == [["cat"], ["cat", "dog"]]
    assert dataset.items[0].questions[0].text == "What? One word."
    assert list(reasons(dataset)) == [f"{data.name}:{line}" for line in (4, 5, 6, 7, 8)]
    assert reasons(dataset)[f"{data.name}:7"] == "key 'answer' is 3, expected str or list"
    assert reasons(dataset)[f"{data.name}:8"] == "key 'image' is missing"


def test_pope_is_read_under_any_file_name(tmp_path: Path) -> None:
    line = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "no"}
    data = write_lines(tmp_path / "coco_pope_random.json", [line, {**line, "label": "maybe"}])
    dataset = read("pope", tmp_path)
    assert [item.truth for item in dataset.items] == [{"yes": False}]
    assert reasons(dataset) == {f"{data.name}:2": "key 'label' is 'maybe', expected yes or no"}
    write_lines(tmp_path / "coco_pope_popular.json", [line])
    with pytest.raises(LiraError, match="choose one"):
        read("pope", tmp_path)
    assert len(read("pope", data).items) == 1


def question(pair: int | None, answer: str, **changes: Any) -> dict[str, Any]:
    line = {"image": "a.jpg", "question": f"{answer}?", "answer": answer, "kind": "color"}
    return {**line, **({} if pair is None else {"pair_id": pair}), **changes}


def test_attreval_pairs_are_read_by_pair_id(tmp_path: Path) -> None:
    lines = [
        question(7, "No"),
        question(8, "yes"),
        question(7, "Yes"),
        question(8, "Yes"),
        question(9, "yes"),
        question(10, "yes"),
        question(10, "no", image="b.jpg"),
        question(None, "yes"),
    ]
    write_lines(tmp_path / "attreval.jsonl", lines)
    dataset = read("attreval", tmp_path)
    (item,) = dataset.items
    assert [asked.text for asked in item.questions] == ["Yes?", "No?"]  # the yes question first
    assert item.truth == {"kind": "color"}
    assert reasons(dataset) == {
        "attreval.jsonl:8": "key 'pair_id' is missing, which other lines have",
        "attreval.jsonl:2": "the pair's answers are yes and yes, expected a yes and a no",
        "attreval.jsonl:5": "1 questions in the pair, expected two",
        "attreval.jsonl:6": "the pair is about two images, a.jpg and b.jpg, expected one",
    }


def test_attreval_without_pair_ids_pairs_consecutive_lines(tmp_path: Path) -> None:
    lines = [question(None, answer) for answer in ("yes", "no", "no", "yes", "yes")]
    write_lines(tmp_path / "refcoco_attri.jsonl", lines)
    dataset = read("attreval", tmp_path)
    assert [item.key for item in dataset.items] == ["refcoco_attri.jsonl:1", "refcoco_attri.jsonl:3"]
    assert list(reasons(dataset)) == ["refcoco_attri.jsonl:5"]


def test_attreval_expressions_have_words_and_answers(tmp_path: Path) -> None:
    line = {"image": "a.jpg", "expression": "the car", "kind": "color", "words": ["red", "blue"]}
    lines = [
        {**line, "answer": "red"},
        {**line, "answer": ["red", "blue"]},
        {**line, "answer": "green"},
        {**line, "words": ["red"], "answer": "red"},
        {**line, "answer": []},
        {**line, "words": ["red", "\ud800"], "answer": "red"},
    ]
    write_lines(tmp_path / "attributes.jsonl", lines)
    write_lines(tmp_path / "vqa.jsonl", [question(1, "yes"), question(1, "no"), question(2, "yes")])
    dataset = read("attreval", tmp_path)
    assert [item.words for item in dataset.items] == [(), ("red", "blue"), ("red", "blue")]
    assert [item.truth.get("answers") for item in dataset.items] == [None, ["red"], ["red", "blue"]]
    assert len(reasons(dataset)) == 5
    limited = read("attreval", tmp_path, limit=1)
    assert [entry.key for entry in limited.entries] == ["vqa.jsonl:1", "attributes.jsonl:1"]


# --- paths --------------------------------------------------------------------------------------------


def test_images_are_taken_only_from_below_their_folder(tmp_path: Path) -> None:
    data = tmp_path / "annotations"
    data.mkdir()
    assert images_folder(data, None) == data
    (data / "images").mkdir()
    assert images_folder(data, None) == images_folder(data / "vqa.jsonl", None) == data / "images"
    assert images_folder(data, tmp_path) == tmp_path
    with pytest.raises(LiraError, match="no such folder"):
        images_folder(data, tmp_path / "nowhere")
    assert image_path(data, "val2014/a.jpg") == data / "val2014" / "a.jpg"
    for name in ("/etc/passwd", "../a.jpg", "a/../../b.jpg"):
        with pytest.raises(LiraError, match="below the images folder"):
            image_path(data, name)


def test_an_unknown_task_lists_the_choices() -> None:
    with pytest.raises(LiraError, match="there are: refseg, gcg, vqa, attreval, pope, chair"):
        task_named("caption")
    assert [task_named(name).name for name in TASKS] == list(TASKS)
