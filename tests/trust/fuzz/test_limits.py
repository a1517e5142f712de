"""The judge notices each way in which an input may not end: it can fail."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fuzz import figures
from fuzz.child import Run, signature
from fuzz.kind import Kind
from fuzz.kinds import KINDS
from fuzz.limits import Finding, checked
from fuzz.mutate import MOST_BYTES, mutated
from fuzz.recheck import recheck

from lira_engine.bundle import schema
from lira_engine.errors import LiraError, OutOfMemory


def ends(read: Callable[[bytes], None], seconds: float = 60) -> str:
    """Return what the judge says of a reader, with a limit of 100 MB."""
    with pytest.raises(Finding) as caught:
        checked(Kind("bad", read, list), b"x", seconds=seconds, megabytes=100)
    return str(caught.value)


def raises(error: BaseException) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        raise error

    return read


class Panic(BaseException):
    """As a panic of Rust, no Exception."""


@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyError("k"), AssertionError(), RecursionError(), Panic("p")]
)
def test_any_other_error_is_a_finding(error: BaseException) -> None:
    assert ends(raises(error)).startswith(type(error).__name__)


def test_a_lira_error_is_none_unless_it_quotes_the_file() -> None:
    assert checked(Kind("good", raises(LiraError("what, expected, mend")), list), b"").refused
    assert not checked(Kind("good", lambda data: None, list), b"").refused
    assert "a message of 20,000 characters" in ends(raises(LiraError("x" * 20_000)))


def test_what_takes_too_long_is_a_finding() -> None:
    def forever(data: bytes) -> None:
        while True:
            with suppress(Exception):  # a reader's own does not catch the alarm
                pass

    assert ends(forever, 0.2) == "takes more than 0.2 s"
    assert ends(lambda data: time.sleep(30), 0.2) == "takes more than 0.2 s"


def test_what_takes_too_much_memory_is_a_finding() -> None:
    def brief(data: bytes) -> None:
        np.ones(15 << 20)  # 126 MB, given back at once

    def large(data: bytes) -> None:
        bytearray(1 << 30)

    assert re.fullmatch(r"takes 1[23]\d MB, expected at most 100", ends(brief))
    assert ends(large) == "asks for more than 200 MB"

    def told(data: bytes) -> None:
        try:
            bytearray(1 << 30)
        except MemoryError as error:
            raise OutOfMemory("out of memory") from error

    assert ends(told) == "asks for more than 200 MB"
    bytearray(1 << 29)  # the ceiling is gone


def test_memory_of_earlier_inputs_is_not_counted() -> None:
    np.ones(15 << 20)
    assert checked(Kind("good", lambda data: None, list), b"x", megabytes=50).megabytes < 20


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_changes_are_repeatable_and_of_a_limited_size(kind: Kind) -> None:
    seed = kind.seeds()[0]
    made = [mutated(seed, kind.form, random.Random(number)) for number in range(30)]
    assert made == [mutated(seed, kind.form, random.Random(number)) for number in range(30)]
    assert len(set(made)) > 10 and all(len(data) <= MOST_BYTES for data in made)


def test_a_run_goes_on_after_findings_and_keeps_one_of_each(tmp_path: Path) -> None:
    def read(data: bytes) -> None:
        if data[0] % 2:
            raise KeyError(data)
        raise LiraError("no")

    run = Run(Kind("bad", read, list), "test", 60, tmp_path)
    for number in range(10):
        run.one(bytes([number]))
    run.save()
    found = figures.read(tmp_path / "figures.json")["bad"]
    assert (found.inputs, found.refused, found.findings) == (10, 5, {"KeyError": 5})
    assert [path.read_bytes() for path in (tmp_path / "findings").glob("*") if not path.suffix] == [b"\1"]


@dataclass
class Unreadable:
    """Its field is missing."""

    lost: int

    def __init__(self) -> None:
        pass


def test_findings_are_told_apart_by_error_and_place() -> None:
    def read(data: bytes) -> None:
        schema.write(Unreadable())

    with pytest.raises(Finding) as caught:
        checked(Kind("bad", read, list), b"x")
    assert signature(caught.value).startswith("AttributeError in schema.py:")
    assert signature(Finding("takes more than 20 s")) == "takes more than 20 s"


def test_what_was_mended_is_counted_as_that_and_the_rest_stays_open(tmp_path: Path) -> None:
    folder = tmp_path / "build_json" / "findings"
    folder.mkdir(parents=True)
    for name, text, data in (("a", "Mended in x.py", b"{}"), ("b", "Open in y.py", b"still")):
        (folder / name).write_bytes(data)
        (folder / f"{name}.txt").write_text(f"{text}\nof the reader\n")

    def read(data: bytes) -> None:
        if data == b"still":
            raise KeyError

    found = {
        "build_json": figures.Figures(
            findings={"Mended in x.py": 3, "Open in y.py": 2, "the process hangs": 1}
        )
    }
    recheck(found, tmp_path, {"build_json": Kind("build_json", read, list)})
    assert found["build_json"].findings == {"Open in y.py": 2, "the process hangs": 1}
    assert found["build_json"].mended == 1


def test_figures_add_up_and_make_the_table(tmp_path: Path) -> None:
    one = figures.Figures(["atheris"], 10, 4, 60.0, 0.5, 3.0, {"a": 1})
    one.add(figures.Figures(["hypothesis"], 30, 6, 60.0, 0.1, 9.0, {"a": 2, "b": 1}))
    figures.write(tmp_path / "f.json", {"x": one})
    again = figures.read(tmp_path / "f.json")
    assert again == {"x": one} and one.findings == {"a": 3, "b": 1}
    assert "| x | atheris, hypothesis | 2.0 | 40 | 25% | 0 | 0.50 | 9 | 0 | 2 |" in figures.table(again)


def test_the_page_has_the_recorded_figures() -> None:
    recorded = figures.read(figures.RECORDED)
    assert recorded and set(recorded) <= set(KINDS)
    assert figures.table(recorded) in figures.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("module", ["fuzz", "fuzz.figures"])
def test_the_commands_start(module: str) -> None:
    folder = Path(__file__).parents[1]
    command = [sys.executable, "-m", module, *(["--help"] if module == "fuzz" else [])]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0 and ended.stderr == ""
