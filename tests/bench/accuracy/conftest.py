"""Fixtures that run `lira-edge eval` and read what it writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lira_bench.accuracy.items import Dataset, LeftOut, Source
from lira_bench.accuracy.tasks import TASKS
from lira_engine.main import main


class Evaluate:
    """evaluate(TASK, OUT, *MORE) runs the command in this process, with one thread; returns its exit code."""

    def __init__(self, bundle: Path, data: Path) -> None:
        self.bundle, self.data = bundle, data

    def __call__(self, *arguments: Any, **others: Path) -> int:
        with pytest.raises(SystemExit) as stopped:
            main(self.arguments(*arguments, **others))
        assert isinstance(stopped.value.code, int)
        return stopped.value.code

    def arguments(
        self, task: str, out: str | Path, *more: object, bundle: Path | None = None, data: Path | None = None
    ) -> list[str]:
        typed = ["eval", bundle or self.bundle, "--data", data or self.data, "--task", task, "-o", out]
        return [str(argument) for argument in (*typed, "--threads", 1, *more)]

    def process(self, *arguments: Any, **others: Path) -> list[str]:
        """Return the command line for a process of its own."""
        code = "from lira_engine.main import main; main()"
        return [sys.executable, "-c", code, *self.arguments(*arguments, **others)]

    @staticmethod
    def report(out: str | Path) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(Path(out, "report.json").read_text(encoding="utf-8"))
        return content

    @staticmethod
    def samples(out: str | Path) -> list[dict[str, Any]]:
        text = Path(out, "samples.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n") if line]

    @staticmethod
    def same_bytes(one: str | Path, other: str | Path) -> bool:
        names = ("report.json", "samples.jsonl")
        return all(Path(one, name).read_bytes() == Path(other, name).read_bytes() for name in names)


class Annotated:
    """Writes annotation files into a folder, and reads them as a task does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, content: object) -> Path:
        """Write bytes and texts as they are, other values as JSON."""
        path = self.folder / name
        if not isinstance(content, bytes):
            content = (content if isinstance(content, str) else json.dumps(content)).encode()
        path.write_bytes(content)
        return path

    def write_lines(self, name: str, entries: Sequence[object]) -> Path:
        lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
        return self.write(name, "".join(f"{line}\n" for line in lines))

    def read(self, task: str, name: str = "", **options: Any) -> Dataset:
        return TASKS[task].read(Source(self.folder / name, **options))

    def reasons(self, task: str, name: str = "", **options: Any) -> dict[str, str]:
        """Return the reasons of left out entries, by key."""
        entries = self.read(task, name, **options).entries
        return {entry.key: entry.reason for entry in entries if isinstance(entry, LeftOut)}


@pytest.fixture
def annotated(tmp_path: Path) -> Annotated:
    return Annotated(tmp_path)


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def evaluate(accuracy_bundle: Path, accuracy_data: Path) -> Evaluate:
    return Evaluate(accuracy_bundle, accuracy_data)


@pytest.fixture(scope="session")
def grounded(evaluate: Evaluate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted evaluation of grounded captions."""
    out = tmp_path_factory.mktemp("grounded") / "out"
    assert evaluate("gcg", out) == 0
    return out
