"""The folder of an evaluation: continuing, and refusing other contents."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from lira_bench.accuracy.output import Output
from lira_engine.errors import LiraError

RoomFor = Callable[[int], AbstractContextManager[None]]

RUN = {"task": "vqa", "limit": None, "data": {"vqa.jsonl": "a" * 64}}


def record(number: int) -> dict[str, Any]:
    return {"item": f"vqa.jsonl:{number}", "image": "a.png", "scores": {"accuracy": 1.0}, "text": "é\u2028"}


def read_report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return content


def keys(output: Output) -> list[str]:
    return [key.rpartition(":")[2] for key in output.records]


def write_two(folder: Path) -> None:
    with Output(folder, RUN) as output:
        output.append(record(1))
        output.append(record(2))


def test_a_record_is_on_disk_at_once(tmp_path: Path) -> None:
    with Output(tmp_path / "out", RUN) as output:
        output.append(record(1))
        (line,) = (tmp_path / "out" / "samples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        assert json.loads(line) == record(1)
        report = read_report(tmp_path / "out")
        assert (report["complete"], report["run"]) == (False, RUN)


def test_the_same_run_goes_on_after_an_incomplete_line(tmp_path: Path) -> None:
    write_two(tmp_path)
    with open(tmp_path / "samples.jsonl", "ab") as file:
        file.write(b'{"item": "vqa.jsonl:3", "sco')
    with Output(tmp_path, RUN) as output:
        assert keys(output) == ["1", "2"]
        output.append(record(3))
    with Output(tmp_path, RUN) as output:
        assert keys(output) == ["1", "2", "3"]
        output.finish([record(i) for i in (1, 2, 3)], {"metrics": {"accuracy": 1.0}})
    assert [json.loads(line) for line in (tmp_path / "samples.jsonl").open()] == [
        record(i) for i in (1, 2, 3)
    ]
    assert read_report(tmp_path)["complete"] is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "samples.jsonl"]


def test_left_out_items_are_tried_again(tmp_path: Path) -> None:
    with Output(tmp_path, RUN) as output:
        output.append({"item": "vqa.jsonl:1", "left_out": "no such file"})
        output.append(record(2))
    with Output(tmp_path, RUN) as output:
        assert keys(output) == ["2"]
        output.append(record(1))
    with Output(tmp_path, RUN) as output:
        assert sorted(keys(output)) == ["1", "2"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({**RUN, "limit": 5}, "limit None, this one has 5"),
        ({**RUN, "task": "pope"}, "task vqa, this one has pope"),
        ({**RUN, "data": {"vqa.jsonl": "b" * 64}}, "data.vqa.jsonl aaaaaaaaaaaa, this one has bbbbbbbbbbbb"),
        ({**RUN, "data": {}}, "data.vqa.jsonl aaaaaaaaaaaa, this one has None"),
    ],
)
def test_another_run_is_refused_until_it_may_overwrite(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    write_two(tmp_path)
    with pytest.raises(LiraError) as error:
        Output(tmp_path, changed)
    assert said in str(error.value) and "--overwrite" in str(error.value)
    with Output(tmp_path, RUN) as output:
        assert keys(output) == ["1", "2"]  # the refusal cost nothing
    with Output(tmp_path, changed, overwrite=True) as output:
        assert keys(output) == []
    assert read_report(tmp_path)["run"] == changed


def test_a_folder_with_other_things_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(LiraError, match="holds other things"):
        Output(tmp_path, RUN, overwrite=True)
    (tmp_path / "report.json").write_text('{"by": "somebody"}')
    with pytest.raises(LiraError, match="is not the report of an evaluation"):
        Output(tmp_path, RUN, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "thesis.txt"]
    with pytest.raises(LiraError, match="is a file"):
        Output(tmp_path / "thesis.txt", RUN)


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    write_two(tmp_path)
    samples = tmp_path / "samples.jsonl"
    samples.write_bytes(samples.read_bytes().replace(b'{"item"', b'"item"', 1))
    with pytest.raises(LiraError, match=r"samples\.jsonl:1 is damaged"):
        Output(tmp_path, RUN)


def test_a_record_without_its_image_is_an_error(tmp_path: Path) -> None:
    write_two(tmp_path)
    samples = tmp_path / "samples.jsonl"
    samples.write_bytes(samples.read_bytes().replace(b'"image": "a.png", ', b"", 1))
    with pytest.raises(LiraError, match=r"samples\.jsonl:1 is damaged"):
        Output(tmp_path, RUN)


def test_records_of_replaced_images_are_forgotten(tmp_path: Path) -> None:
    with Output(tmp_path, RUN) as output:
        output.append(record(1))
        output.append({**record(2), "image": "b.png"})
        output.forget({"a.png"})
        assert keys(output) == ["2"]
        output.append(record(3))
    with Output(tmp_path, RUN) as output:
        assert keys(output) == ["2", "3"]


def test_an_evaluation_of_an_earlier_version_may_be_overwritten(tmp_path: Path) -> None:
    write_two(tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps({**report, "format_version": 1}))
    with pytest.raises(LiraError, match=r"format version 1, expected 2: .*--overwrite"):
        Output(tmp_path, RUN)
    with Output(tmp_path, RUN, overwrite=True) as output:
        assert keys(output) == []


def test_text_that_is_not_utf8_survives_in_a_report(tmp_path: Path) -> None:
    run = {**RUN, "instruction": "Kurz, \udcfcberall."}  # as an argument in Latin-1 arrives
    for _ in range(2):
        with Output(tmp_path, run):
            assert read_report(tmp_path)["run"] == run


@pytest.mark.skipif(os.name == "nt", reason="there two evaluations into one folder are not told apart")
def test_two_evaluations_do_not_write_one_folder(tmp_path: Path) -> None:
    with Output(tmp_path, RUN) as output:
        output.append(record(1))
        with pytest.raises(LiraError, match="being written by another evaluation"):
            Output(tmp_path, RUN, overwrite=True)
        output.append(record(2))
    with Output(tmp_path, RUN) as output:
        assert keys(output) == ["1", "2"]


FULL = r"samples\.jsonl cannot be written: File too large; take a disk"


def test_a_full_disk_is_an_error_that_names_the_file_and_the_run_goes_on_later(
    tmp_path: Path, room_for: RoomFor
) -> None:
    line = len((json.dumps(record(1), ensure_ascii=False) + "\n").encode())
    with pytest.raises(LiraError, match=FULL), Output(tmp_path, RUN) as output, room_for(line + line // 2):
        output.append(record(1))
        output.append(record(2))
    with Output(tmp_path, RUN) as output:
        assert keys(output)[0] == "1"
        output.append(record(2))
    with Output(tmp_path, RUN) as output:
        assert keys(output) == ["1", "2"]


def test_a_disk_that_stays_full_is_told_once(tmp_path: Path, room_for: RoomFor) -> None:
    """What is left in the file's buffer is written again when it is closed."""
    output = Output(tmp_path, RUN)
    with room_for(1), pytest.raises(LiraError, match=FULL), output:
        output.append(record(1))
    with Output(tmp_path, RUN) as output:
        for item in range(40):
            output.append(record(item))
        output.forget([])
        room = (tmp_path / "report.json").stat().st_size  # for the report, which is written first
        assert room < (tmp_path / "samples.jsonl").stat().st_size
        with room_for(room), pytest.raises(LiraError, match=FULL):
            output.forget([])
