"""A submitted file is anybody's: what is wrong with it is said in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lira_bench.results import submission
from lira_bench.results.page import read_entries
from lira_bench.results.result import Results
from lira_bench.results.submitted import read_submitted
from lira_engine import LiraError

Edit = Callable[[Any], Any]


@pytest.fixture
def data(results: Results, tmp_path: Path) -> Any:
    submission.write(tmp_path / "good.json", results)
    return json.loads((tmp_path / "good.json").read_text())


def put(value: Any, *keys: Any) -> Edit:
    def edit(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return edit


def dropped(*keys: Any) -> Edit:
    def edit(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return edit


ENGINE = ("engines", 0)
FIGURES = (*ENGINE, "figures")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("lira-bench", "format"), 'lacks "format": "lira-bench-results"'),
        (put(2, "format_version"), "format_version is '2', expected 1"),
        (put(True, "format_version"), "format_version is 'True', expected 1"),
        (put("x", "host"), "unknown key 'host'"),
        (put("x", "machine", "hostname"), "unknown key 'hostname'"),
        (dropped("machine"), "key 'machine' is missing"),
        (put("2", "machine", "cores"), "found '2', expected an integer"),
        (put(True, *FIGURES, "ttft_s"), "expected a number"),
        (put("a|b", "machine", "cpu"), "has the sign '|'"),
        (put("a\nb", "machine", "cpu"), "has the sign '\\n'"),
        (put("a\x1b[2J", "machine", "cpu"), "has the sign '\\x1b'"),
        (put("a\u202eb", "machine", "cpu"), "has the sign '\\u202e'"),
        (put("<img src=x>", "machine", "gpus", 0, "name"), "has the sign '<'"),
        (put("[x](y)", "machine", "jetson", 0), "has the sign '['"),
        (put("`x`", "machine", "power_mode"), "has the sign '`'"),
        (put("@everybody", "machine", "cpu"), "has the sign '@'"),
        (put("**x**", "machine", "cpu"), "has the sign '*'"),
        (put("__x__", "machine", "cpu"), "has the sign '_'"),
        (put("x_", "machine", "cpu"), "has the sign '_'"),
        (put("", "machine", "cpu"), "name of a device is ''"),
        (put("  x", "machine", "jetson", 0), "name of a device is '  x'"),
        (put("- x", "machine", "gpus", 0, "name"), "name of a device is '- x'"),
        (put("+ x", "machine", "system"), "system is '+ x'"),
        (put("my weights", "bundle", "name"), "name of the bundle is 'my weights'"),
        (put("http:x", "machine", "cpu"), "has the sign ':'"),
        (put("see WWW.x.y", "machine", "cpu"), "has the sign '.'"),
        (put({"a|b": "1"}, "machine", "versions"), "has the sign '|'"),
        (put("x" * 121, "machine", "cpu"), "has 121 signs, expected at most 120"),
        (put(["x"] * 81, "machine", "jetson"), "has 81 members in one place"),
        (put("yesterday", "date"), "date is 'yesterday'"),
        (put("2026-13-01", "date"), "date is '2026-13-01'"),
        (put("A" * 64, "bundle", "manifest_sha256"), "manifest_sha256 is 'AAAA"),
        (put("caption", "asked", "task"), "task is 'caption', expected refseg|gcg|vqa"),
        (put("cpu-fp64", *ENGINE, "name"), "an engine's name is 'cpu-fp64'"),
        (put("tensorrt-int4", *ENGINE, "name"), "expected each once"),
        (put("failed", *ENGINE, "status"), "status of tensorrt-fp16 is 'failed', expected measured"),
        (put(None, *FIGURES), "status of tensorrt-fp16 is 'measured', expected refused|failed"),
        (put("because", *ENGINE, "reason"), "reason of tensorrt-fp16 is 'because'"),
        (put("vae", *ENGINE, "error", "stage"), "stage of tensorrt-fp16 is 'vae'"),
        (put("a b", *ENGINE, "error", "output"), "output of tensorrt-fp16 is 'a b'"),
        (put("me", *ENGINE, "error", "by"), "who found the error of tensorrt-fp16 is 'me'"),
        (put(0, *FIGURES, "ttft_s"), "ttft_s of tensorrt-fp16 is 0.0, expected more than 0"),
        (put(-1, *FIGURES, "peak_rss_mib"), "found -1, expected a number from 0"),
        (put(10**14, *FIGURES, "new_tokens"), "expected a number from 0 to 1e+13"),
        (put(float("nan"), *FIGURES, "ttft_s"), "found nan, expected a number"),
        (put(float("inf"), *FIGURES, "others"), "found inf, expected a number"),
        (lambda data: data["engines"].__delitem__(slice(0, 2)), "expected each once, one measured"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(data: Any, tmp_path: Path, edit: Edit, message: str) -> None:
    edit(data)
    (tmp_path / "bad.json").write_text(json.dumps(data))
    with pytest.raises(LiraError) as caught:
        read_submitted(tmp_path / "bad.json")
    told = str(caught.value)
    assert message in told and "bad.json" in told and told.isprintable() and len(told) < 500


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[]", 'lacks "format"'),
        (b"3", 'lacks "format"'),
        (b"[" * 60_000, "is not JSON"),
        (
            b'{"format": "lira-bench-results", "format_version": 1, "x": ' + b"[" * 900 + b"]" * 900 + b"}",
            "is nested",
        ),
        (b" " * 70_000, "has more than 64 KiB"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(LiraError, match=message):
        read_submitted(tmp_path / "bad.json")


def test_a_good_file_is_read_as_it_was_written(results: Results, data: Any, tmp_path: Path) -> None:
    assert read_submitted(tmp_path / "good.json") == submission.for_others(results)


@pytest.mark.parametrize("name", ["A.json", "a b.json", "a|b.json", "-.json", ".a.json"])
def test_names_of_files_are_checked(data: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / "good.json").rename(tmp_path / name)
    with pytest.raises(LiraError, match="expected small letters"):
        read_entries(tmp_path)


def test_a_folder_that_is_none_and_a_file_that_is_one(tmp_path: Path) -> None:
    with pytest.raises(LiraError, match="is not a folder"):
        read_entries(tmp_path / "nowhere")
    (tmp_path / "a.json").mkdir()
    with pytest.raises(LiraError, match="cannot be read"):
        read_entries(tmp_path)
