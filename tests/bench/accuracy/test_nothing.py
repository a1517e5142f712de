"""An evaluation without answers fails, and meets no bound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Evaluate

REF = {"ref_id": 1, "ann_id": 1, "image_id": 1, "split": "val", "sentences": [{"sent": "it"}]}


@pytest.mark.parametrize(
    ("task", "files", "more", "said"),
    [
        ("pope", {"pope.jsonl": ""}, (), "pope.jsonl: there are no entries, so there is nothing to evaluate"),
        ("pope", {"pope.jsonl": "\ufeff\r\n\n"}, (), "there are no entries"),
        ("gcg", {"gcg.json": "[]"}, (), "gcg.json: there are no entries"),
        ("attreval", {"vqa.jsonl": ""}, (), "there are no entries"),
        (
            "chair",
            {"instances.json": '{"images": [], "annotations": [], "categories": [{"name": "a"}]}'},
            (),
            "no entries",
        ),
        (
            "pope",
            {"pope.jsonl": "{}\n{}\n"},
            (),
            "none of 2 entries could be evaluated; pope.jsonl:1: key 'image'",
        ),
        (
            "pope",
            {"pope.jsonl": "{}\n{}\n"},
            ("--limit", 1),
            "none of 1 entries (--limit 1) could be evaluated",
        ),
        ("refseg", {"refs.json": "[]"}, (), "there are no entries"),
        (
            "refseg",
            {"refs.json": json.dumps([REF])},
            ("--split", "testA"),
            "has no split 'testA'; it has: val",
        ),
        ("refseg", {"refs.json": "[]"}, ("--split", "val"), "has no split 'val'; it has: none"),
        (
            "refseg",
            {"refs.json": json.dumps([{**REF, "sentences": []}])},
            (),
            "key 'sentences' is an empty list",
        ),
    ],
)
def test_empty_files_are_errors(
    evaluate: Evaluate,
    tmp_path: Path,
    task: str,
    files: dict[str, str],
    more: tuple[object, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "instances.json").write_text('{"images": [], "annotations": []}')
    for name, content in files.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert evaluate(task, "out", *more, "--require", "ciou=-1", data=tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert not Path("out").exists()


def test_a_bound_on_an_unmeasured_figure_fails(
    evaluate: Evaluate, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (evaluate.data / "pope.jsonl").read_text().split("\n")
    no = [line for line in lines if line and json.loads(line)["label"] == "no"][:1]
    Path("pope.jsonl").write_text("\n".join(no))
    images = ("--images", evaluate.data / "images")
    assert evaluate("pope", "out", *images, "--require", "recall=-1", data=Path("pope.jsonl").resolve()) == 2
    assert "recall is not measured, required -1" in capsys.readouterr().err
