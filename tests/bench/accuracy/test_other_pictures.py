"""An answer is about one picture: a replaced picture is noticed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from lira_bench.accuracy import run
from lira_bench.accuracy.files import identity

if TYPE_CHECKING:
    from .conftest import Evaluate

FEW = ("--limit", 24)  # of pope's questions: on two pictures


@pytest.fixture
def data(evaluate: Evaluate, tmp_path: Path) -> Path:
    return Path(shutil.copytree(evaluate.data, tmp_path / "data"))


def replace(picture: Path) -> None:
    """Replace the pixels of a file, keeping its name and time."""
    before = picture.stat()
    Image.new("RGB", (384, 384), (128, 128, 128)).save(picture)
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))


def asked_about(evaluate: Evaluate, out: str) -> list[str]:
    return list(dict.fromkeys(sample["image"] for sample in evaluate.samples(out)))


def test_a_record_names_its_picture_by_content(evaluate: Evaluate, data: Path) -> None:
    assert evaluate("pope", "out", *FEW, data=data) == 0
    for sample in evaluate.samples("out"):
        assert sample["image_sha256"] == identity(data / "images" / sample["image"])
    assert evaluate.report("out")["images"]["count"] == len(asked_about(evaluate, "out")) > 1
    (data / "images").rename(data / "moved")  # the same pictures elsewhere are the same pictures
    assert evaluate("pope", "out", *FEW, "--images", data / "moved", data=data) == 0


def test_replaced_pictures_are_refused(
    evaluate: Evaluate, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("pope", "out", *FEW, data=data) == 0
    before = evaluate.report("out")
    changed = asked_about(evaluate, "out")[1]
    replace(data / "images" / changed)
    assert evaluate("pope", "out", *FEW, data=data) == 2
    error = capsys.readouterr().err
    assert error == (
        f"error: out holds answers about other pictures: {changed}; "
        "choose another -o, or start anew with --overwrite\n"
    )
    assert evaluate.report("out") == before
    assert evaluate("pope", "out", *FEW, "--overwrite", data=data) == 0
    assert evaluate("pope", "fresh", *FEW, data=data) == 0
    assert evaluate.same_bytes("out", "fresh")
    assert evaluate.report("out")["images"] != before["images"]


def test_another_folder_of_pictures_is_refused(
    evaluate: Evaluate, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("pope", "out", *FEW, data=data) == 0
    empty = data / "empty"
    empty.mkdir()
    assert evaluate("pope", "out", *FEW, "--images", empty, data=data) == 2
    names = asked_about(evaluate, "out")
    assert (
        f"other pictures: {names[0]} and {len(names) - 1} more; choose another -o" in capsys.readouterr().err
    )


def test_a_picture_replaced_after_a_stop_is_refused(evaluate: Evaluate, data: Path) -> None:
    assert evaluate("pope", "out", *FEW, data=data) == 0
    samples = Path("out/samples.jsonl")
    first, *_ = samples.read_bytes().split(b"\n")
    samples.write_bytes(first + b"\n")
    replace(data / "images" / json.loads(first)["image"])
    assert evaluate("pope", "out", *FEW, data=data) == 2


def test_a_missing_picture_may_come_later(evaluate: Evaluate, data: Path) -> None:
    first = data / "images" / "000000.png"
    good = first.read_bytes()
    first.write_bytes(good[:500])
    assert evaluate("pope", "out", *FEW, data=data) == 0
    assert evaluate.report("out")["counts"]["left_out"] > 0
    first.write_bytes(good)
    assert evaluate("pope", "out", *FEW, data=data) == 0
    assert evaluate("pope", "whole", *FEW, data=data) == 0
    assert evaluate.same_bytes("out", "whole")


def test_a_picture_replaced_during_the_run_is_an_error(
    evaluate: Evaluate, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answering = run._in_this_process

    def meanwhile(*arguments: Any) -> Iterator[Any]:
        for number, record in enumerate(answering(*arguments)):
            yield record
            if number == 0:
                replace(data / "images" / record["image"])

    monkeypatch.setattr(run, "_in_this_process", meanwhile)
    assert evaluate("pope", "out", *FEW, data=data) == 2
    error = capsys.readouterr().err
    assert (
        "pictures were replaced while they were asked about: 000000.png; run the same command again" in error
    )
    assert evaluate.report("out")["complete"] is False
    assert "000000.png" not in asked_about(evaluate, "out")
    monkeypatch.setattr(run, "_in_this_process", answering)
    assert evaluate("pope", "out", *FEW, data=data) == 0
    assert evaluate("pope", "fresh", *FEW, data=data) == 0
    assert evaluate.same_bytes("out", "fresh")


def test_compared_engines_see_the_same_pictures(
    evaluate: Evaluate, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compared = ("pope", "out", "--limit", 4, "--compare", "cpu-int4")
    answering = run._in_this_process

    def after_the_first(job: Any, groups: Any) -> Iterator[Any]:
        if job.engines.precision == "int4":
            replace(data / "images" / "000000.png")
        yield from answering(job, groups)

    monkeypatch.setattr(run, "_in_this_process", after_the_first)
    assert evaluate(*compared, data=data) == 2
    assert "000000.png was replaced since pope.jsonl:1 was asked about" in capsys.readouterr().err
    monkeypatch.setattr(run, "_in_this_process", answering)
    assert evaluate(*compared, data=data) == 2
    assert "out holds answers about other pictures: 000000.png" in capsys.readouterr().err
    assert evaluate(*compared, "--overwrite", data=data) == 0
