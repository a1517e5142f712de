"""Damaged data is named and counted, and the run goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from lira_engine.errors import LiraError
from lira_runtime import Lira

if TYPE_CHECKING:
    from .conftest import Evaluate


@pytest.fixture
def damaged(evaluate: Evaluate) -> Path:
    """The scenes, four of six damaged."""
    folder = Path("damaged").resolve()
    shutil.copytree(evaluate.data, folder)
    grounded = json.loads((folder / "gcg.json").read_text())
    del grounded[0]["groundings"]
    (folder / "images" / grounded[1]["file_name"]).unlink()
    image = folder / "images" / grounded[2]["file_name"]
    image.write_bytes(image.read_bytes()[:2000])
    for grounding in grounded[3]["groundings"].values():
        grounding["rle_masks"] = [{"size": [2, 2], "counts": "04"}]
    (folder / "gcg.json").write_text(json.dumps(grounded))
    return folder


def test_damaged_items_are_counted_and_the_run_goes_on(
    evaluate: Evaluate, damaged: Path, grounded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("gcg", "out", data=damaged) == 0
    found = evaluate.report("out")
    assert found["counts"] == {"entries": 6, "evaluated": 2, "left_out": 4}
    reasons = {entry["item"]: entry["reason"] for entry in found["left_out"]}
    assert reasons.pop("gcg.json[2]").startswith("000002.png is damaged or cut short")
    assert reasons == {
        "gcg.json[0]": "key 'groundings' is missing",
        "gcg.json[1]": "000001.png: there is no such file, expected a JPEG, PNG, WebP or BMP image",
        "gcg.json[3]": "the mask is 2 x 2 (width x height), expected the image's 384 x 384",
    }
    assert [sample["item"] for sample in evaluate.samples("out")] == [f"gcg.json[{i}]" for i in range(6)]
    assert evaluate.samples("out")[4:] == evaluate.samples(grounded)[4:]
    assert "left out: 4 of 6" in capsys.readouterr().out

    missing = "images/000001.png"
    shutil.copy(evaluate.data / missing, damaged / missing)
    assert evaluate("gcg", "out", "--json", "figures.json", data=damaged) == 0
    left_out = json.loads(Path("figures.json").read_text())["left_out"]
    assert left_out == evaluate.report("out")["left_out"]
    assert evaluate.report("out")["counts"]["left_out"] == 3
    assert evaluate.samples("out")[1] == evaluate.samples(grounded)[1]


def test_an_image_of_another_size_is_left_out(evaluate: Evaluate) -> None:
    images = Path("images").resolve()
    shutil.copytree(evaluate.data / "images", images)
    with Image.open(images / "000000.png") as picture:
        picture.resize((384, 200)).save(images / "000000.png")
    assert evaluate("refseg", "out", "--images", images, "--limit", 20) == 0
    reasons = {entry["reason"] for entry in evaluate.report("out")["left_out"]}
    assert reasons == {"000000.png has 384 x 200 pixels, its annotations are for 384 x 384"}
    assert evaluate.report("out")["counts"]["evaluated"] > 0


def test_questions_that_cannot_be_asked_are_left_out(evaluate: Evaluate) -> None:
    data = Path("data").resolve()
    data.mkdir()
    common = {"image": "000000.png", "answer": "Yes"}
    questions = ["Is there a cat in the image? Please answer yes or no.", "why " * 700]
    lines = [json.dumps({**common, "question": text}) for text in questions]
    (data / "vqa.jsonl").write_text("\n".join(lines))
    images = evaluate.data / "images"
    assert evaluate("vqa", "out", "--images", images, data=data) == 0
    (entry,) = evaluate.report("out")["left_out"]
    assert entry["item"] == "vqa.jsonl:2" and "tokens" in entry["reason"]
    words = {"image": "000000.png", "expression": "the cat", "kind": "color", "answer": "red"}
    lines = [json.dumps({**words, "words": found}) for found in (["red", "blue"], ["red", "\u2603"])]
    (data / "attributes.jsonl").write_text("\n".join(lines))
    (data / "vqa.jsonl").unlink()
    assert evaluate("attreval", "words", "--images", images, data=data) == 0
    (entry,) = evaluate.report("words")["left_out"]
    assert entry["item"] == "attributes.jsonl:2" and "no token" in entry["reason"]


def test_an_evaluation_without_usable_items_fails(
    evaluate: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("gcg", "out", "--images", tmp_path) == 2
    error = capsys.readouterr().err.strip()
    assert "none of 6 entries" in error and "000000.png: there is no such file" in error and "\n" not in error


def test_an_error_of_the_engines_is_raised(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def overflow(*_: object) -> None:
        raise LiraError("logits that are not finite")

    monkeypatch.setattr(Lira, "look", overflow)
    assert evaluate("gcg", "out") == 2
    assert "not finite" in capsys.readouterr().err
    assert evaluate.report("out")["complete"] is False and not evaluate.samples("out")
