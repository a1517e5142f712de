"""Which pictures and answers are calibrated on, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lira_calib.data.annotations import items_of
from lira_calib.data.items import Data, read_items
from lira_calib.data.mixture import GROUPS, choose, quotas
from lira_engine.errors import LiraError

COUNT, HELD_OUT = 5, 3


def read(scenes: Path, count: int = COUNT, held_out: int = HELD_OUT, seed: int = 0) -> Data:
    return read_items(scenes / "images", [scenes], count, held_out, seed)


@pytest.fixture
def scenes(calib_scenes: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(calib_scenes, tmp_path / "scenes")


def test_no_picture_is_both_calibrated_on_and_held_out(calib_data: Data) -> None:
    assert len(calib_data.calibration) == COUNT and len(calib_data.held_out) == HELD_OUT
    used = {item.image for item in calib_data.calibration}
    assert used.isdisjoint(item.image for item in calib_data.held_out)
    assert set(calib_data.identity["pictures"]) == used | {item.image for item in calib_data.held_out}


def test_more_items_than_pictures_stay_apart(calib_scenes: Path) -> None:
    data = read(calib_scenes, 60, 20)
    assert len({item.key for item in [*data.calibration, *data.held_out]}) == 80
    assert {item.image for item in data.calibration}.isdisjoint(item.image for item in data.held_out)


def test_groups_are_mixed_as_the_paper_mixes_them(calib_scenes: Path) -> None:
    assert quotas(785, list(GROUPS)) == GROUPS
    assert quotas(8, list(GROUPS)) == {"comprehension": 4, "referring": 2, "conversation": 2}
    assert quotas(10, ["referring", "conversation"]) == {"referring": 4, "conversation": 6}
    data = read(calib_scenes, 16, 0)
    assert Counter(item.group for item in data.calibration) == quotas(16, list(GROUPS))
    assert data.identity["mixture"]["calibration"] == quotas(16, list(GROUPS))
    tasks = Counter(item.task for item in data.calibration)
    assert tasks["vqa"] and tasks["caption"]


def test_the_mixture_gives_way_where_a_group_is_scarce(calib_scenes: Path) -> None:
    # There is one grounded caption per picture.
    data = read(calib_scenes, 100, 0)
    counts = Counter(item.group for item in data.calibration)
    assert counts["conversation"] == 8 and counts.total() == 100


def test_the_choice_depends_on_the_seed_alone(calib_scenes: Path) -> None:
    keys = [[item.key for item in read(calib_scenes, seed=seed).calibration] for seed in (0, 0, 1)]
    assert keys[0] == keys[1] != keys[2]


def test_answers_have_the_form_of_training(calib_scenes: Path) -> None:
    data = read(calib_scenes, 60, 0)
    by_task = {item.task: item for item in data.calibration}
    assert by_task["refseg"].answer == "[SEG]<image_id>" and len(by_task["refseg"].masks) == 1
    assert by_task["vqa"].answer in ("Yes", "No")
    grounded = by_task["gcg"]
    number = int(grounded.key.removeprefix("gcg.json[").removesuffix("]"))
    annotated = json.loads((calib_scenes / "gcg.json").read_text())[number]
    plain = annotated["caption"]
    expected = plain
    for phrase in annotated["groundings"]:
        expected = expected.replace(phrase, f"[SEG]<image_id> <p> {phrase} </p> [SEG]")
    assert grounded.answer == expected
    picture = Image.open(data.images / grounded.image)
    masks = grounded.true_masks(picture, data.images / grounded.image)
    truth = [grounding["rle_masks"] for grounding in annotated["groundings"].values()]
    assert len(masks) == 2 * len(truth)
    assert all(
        (first == second).all() and first.any() for first, second in zip(masks[::2], masks[1::2], strict=True)
    )
    assert not (masks[0] & masks[2]).any()
    captions = [item for item in items_of(calib_scenes).items if item.task == "caption"]
    assert plain in [item.answer for item in captions]


def test_a_file_is_recognised_by_its_content(calib_scenes: Path, tmp_path: Path) -> None:
    shutil.copy(calib_scenes / "vqa.jsonl", tmp_path / "mine.jsonl")
    shutil.copy(calib_scenes / "gcg.json", tmp_path / "dense.json")
    shutil.copy(calib_scenes / "refs.json", tmp_path / "objects.json")
    shutil.copy(calib_scenes / "instances.json", tmp_path)
    for name, tasks in (
        ("mine.jsonl", {"vqa"}),
        ("dense.json", {"gcg", "caption"}),
        ("objects.json", {"refseg"}),
    ):
        assert {item.task for item in items_of(tmp_path / name).items} == tasks
    (tmp_path / "other.json").write_text('[{"a": 1}]')
    with pytest.raises(LiraError, match=r"other\.json has no annotations of a known form: expected refs"):
        items_of(tmp_path / "other.json")


def test_questions_that_two_files_share_are_asked_once(calib_scenes: Path) -> None:
    # POPE's questions are those about existence of vqa.jsonl.
    data = read(calib_scenes, 150, 0)
    asked = [(item.image, item.text) for item in data.calibration if item.task == "vqa"]
    assert len(asked) == len(set(asked))


def test_of_several_splits_the_training_one_is_taken(scenes: Path) -> None:
    refs = json.loads((scenes / "refs.json").read_text())
    for number, ref in enumerate(refs):
        ref["split"] = "train" if number % 2 else "val"
    (scenes / "refs.json").write_text(json.dumps(refs))
    keys = {item.key.split(".sentences")[0] for item in items_of(scenes / "refs.json").items}
    assert keys == {f"refs.json[{number}]" for number in range(1, len(refs), 2)}
    for ref in refs:
        ref["split"] = "testA" if ref["split"] == "train" else "val"
    (scenes / "refs.json").write_text(json.dumps(refs))
    with pytest.raises(LiraError, match="the splits 'testA', 'val' and no train"):
        items_of(scenes / "refs.json")


def test_broken_pictures_are_named_and_replaced(scenes: Path) -> None:
    used = {item.image for item in read(scenes, 4, 2).calibration}
    broken = sorted(used)[0]
    (scenes / "images" / broken).write_bytes(b"no picture")
    data = read(scenes, 4, 2)
    assert len(data.calibration) == 4
    assert broken not in {item.image for item in [*data.calibration, *data.held_out]}
    assert [key for key, _ in data.left_out] == [broken]
    (warning,) = data.warnings
    assert warning.startswith(f"left out 1 ({broken}: ") and str(scenes) not in warning


def test_fewer_than_asked_for_is_an_error_that_counts(calib_scenes: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    shutil.copytree(calib_scenes / "images", pictures)
    for path in sorted(pictures.iterdir())[2:]:
        path.write_bytes(b"")
    with pytest.raises(LiraError, match=r"asked for 8 items .* there are 6, 6 \(.*; \.\.\.\) cannot be used"):
        read_items(pictures, [], 8, 4)


def test_a_damaged_mask_costs_its_item_only(scenes: Path) -> None:
    grounded = json.loads((scenes / "gcg.json").read_text())
    for entry in grounded:
        for grounding in entry["groundings"].values():
            grounding["rle_masks"][0]["counts"] = "7"
    (scenes / "gcg.json").write_text(json.dumps(grounded))
    data = read_items(scenes / "images", [scenes / "gcg.json"], 4, 2)
    assert {item.task for item in data.calibration} == {"caption"}
    assert {reason for key, reason in data.left_out if key.startswith("gcg.json[")}


@pytest.mark.parametrize("questions", [True, False])
def test_without_pictures_it_says_what_is_needed(calib_scenes: Path, tmp_path: Path, questions: bool) -> None:
    given = [calib_scenes] if questions else []
    with pytest.raises(
        LiraError, match=r"there is no such folder; calibration needs pictures .*--images DIR"
    ):
        read_items(tmp_path / "nowhere", given, 1, 1)
    if not questions:
        with pytest.raises(LiraError, match=r"nothing to ask about; calibration needs pictures"):
            read_items(tmp_path, given, 1, 1)


def test_without_questions_pictures_get_the_bundles_own(calib_scenes: Path) -> None:
    data = read_items(calib_scenes / "images", [], 4, 4)
    assert not data.annotated
    assert {item.task for item in data.calibration} == {"caption", "refseg", "gcg"}
    assert all(item.answer is None and item.text is None for item in data.calibration)


def test_one_class_only_is_warned_about(scenes: Path) -> None:
    refs, instances = (json.loads((scenes / name).read_text()) for name in ("refs.json", "instances.json"))
    instances["categories"] = [{**one, "name": "dog"} for one in instances["categories"]]
    (scenes / "instances.json").write_text(json.dumps(instances))
    data = read_items(scenes / "images", [scenes / "refs.json"], 4, 2)
    assert any("about one class (dog)" in warning for warning in data.warnings)
    assert refs and not read(scenes).warnings


def test_pictures_that_look_alike_are_warned_about(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    picture = random.integers(0, 255, (64, 64, 3), np.uint8)
    for number in range(6):
        picture[number, number] = number
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    assert any("nearly the same" in warning for warning in read_items(tmp_path, [], 4, 2).warnings)


def test_unusable_items_are_asked_about_once() -> None:
    class One:
        group, task = "referring", "refseg"

    asked: list[Any] = []

    def usable(item: Any) -> bool:
        asked.append(item)
        return False

    offered = {str(number): [One(), One()] for number in range(3)}
    chosen = choose(offered, (2, 1), 0, usable)
    assert chosen.short and chosen.found == 0
    assert len(asked) == len(set(asked)) == 6


def test_a_split_that_is_no_text_is_none(scenes: Path) -> None:
    refs = json.loads((scenes / "refs.json").read_text())
    for number, ref in enumerate(refs):
        ref["split"] = [{"a": 1}, ["train"], None, "val"][number % 4]
    (scenes / "refs.json").write_text(json.dumps(refs))
    assert items_of(scenes / "refs.json").items
