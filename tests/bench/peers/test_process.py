"""Worker processes seen from the parent: answers, failures and turns.

The worker's interpreter is a script of a few lines that speaks its language.
"""

from __future__ import annotations

import io
import json
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lira_bench.peers import interleave as turns
from lira_bench.peers.interleave import interleave
from lira_bench.peers.process import Worker, WorkerError
from lira_bench.peers.worker import prompt_ids, serve

Interpreter = Callable[[str], str]


@pytest.fixture
def interpreter(tmp_path: Path) -> Interpreter:
    """Return an executable for `python -m lira_bench.peers.worker NAME`; `body` runs per command."""

    def write(body: str) -> str:
        path = tmp_path / "python"
        lines = [
            f"#!{sys.executable} -S",
            "import json, os, sys, time",
            "assert sys.argv[1:3] == ['-m', 'lira_bench.peers.worker']",
            "def say(cpu=(0, 0), **answer): print(json.dumps(answer | {'cpu': cpu}), flush=True)",
            "for line in sys.stdin:",
            "    command = json.loads(line)",
            *(f"    {part}" for part in body.splitlines()),
        ]
        path.write_text("\n".join(lines) + "\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return write


def test_a_worker_answers_and_logs_its_error_stream(interpreter: Interpreter, tmp_path: Path) -> None:
    python = interpreter("sys.stderr.write('noise')\nsay(name=sys.argv[3], got=command, peak_rss_mib=7)")
    with Worker("genai", python, tmp_path / "log") as worker:
        found = worker.ask("turn", tokens=3)
        worker.close()
    assert found["name"] == "genai" and found["got"] == {"do": "turn", "tokens": 3}
    assert worker.peak_rss_mib == 7
    assert (tmp_path / "log").read_text() == "noise" * 2


@pytest.mark.parametrize(
    ("end", "told"), [("sys.exit(3)", "ended with code 3"), ("os.kill(os.getpid(), 9)", "killed by signal 9")]
)
def test_a_worker_that_dies_is_an_error(
    interpreter: Interpreter, tmp_path: Path, end: str, told: str
) -> None:
    log = tmp_path / "log"
    with (
        pytest.raises(WorkerError, match=rf"process (was )?{told}.*while asked to turn; see {log}") as caught,
        Worker("genai", interpreter(end), log) as worker,
    ):
        worker.ask("turn")
    assert caught.value.worker == "genai"


def test_a_worker_that_died_before_a_command_is_an_error(interpreter: Interpreter, tmp_path: Path) -> None:
    with (
        pytest.raises(WorkerError, match="ended with code 4 while asked to turn"),
        Worker("genai", interpreter("say()\nsys.exit(4)"), tmp_path / "log") as worker,
    ):
        worker.ask("about")
        worker._process.wait()
        worker.ask("turn")


def test_a_worker_that_reports_an_error_is_ended(interpreter: Interpreter, tmp_path: Path) -> None:
    python = interpreter("say(error='ValueError: no such model', pid=os.getpid())")
    with (
        pytest.raises(WorkerError, match=r"^ValueError: no such model$"),
        Worker("genai", python, tmp_path / "log") as worker,
    ):
        worker.ask("prepare")
    assert worker._process.returncode is not None


def test_a_missing_interpreter_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="nowhere/python cannot be started: No such file"):
        Worker("genai", "nowhere/python", tmp_path / "log")


def test_processor_time_between_commands_is_measured(interpreter: Interpreter, tmp_path: Path) -> None:
    """Each answer has the processor time before it; here 0.3 s passed between the two turns."""
    python = interpreter("number = command['number']\nsay(cpu=(1.3 * number, 1.3 * number + 1))")
    with Worker("genai", python, tmp_path / "log") as worker:
        worker.ask("turn", number=0)
        started = time.perf_counter()
        time.sleep(0.2)
        asked = time.perf_counter()
        worker.ask("turn", number=1)
    assert worker.idle_cores == pytest.approx(0.3 / (asked - started), rel=0.1)


class Fake:
    """A worker that records its commands."""

    def __init__(self, name: str, order: list[str]) -> None:
        self.name, self.order = name, order

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        self.order.append(self.name)
        return {"do": do, "number": len(self.order), **arguments}


def test_turns_alternate_between_the_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(turns.time, "sleep", lambda seconds: order.append(f"{seconds:g} s"))
    told: list[str] = []
    both: list[Any] = [Fake("A", order), Fake("B", order)]
    found = interleave(*both, 2, {"do": "turn", "steps": 5}, told.append)
    # Before each turn the other side's threads go to sleep.
    assert order == ["0.2 s", "A", "0.2 s", "B"] * 2
    assert [[answer["number"] for answer in answers] for answers in found] == [[2, 6], [4, 8]]
    assert found[1][0] == {"do": "turn", "steps": 5, "number": 4}
    assert told[3] == "B: round 2 of 2, B"


def served(name: str, *commands: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a worker's answers, in this process."""
    asked = io.StringIO("".join(json.dumps(command) + "\n" for command in commands))
    answers = io.StringIO()
    serve(name, asked, answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_a_worker_answers_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lira_bench.peers.worker.missing", lambda peer: ["openvino-genai"])
    about, unknown, closed = served(
        "openvino", {"do": "about"}, {"do": "answer", "more": 1}, {"do": "close"}, {"do": "about"}
    )
    assert about["missing"] == ["openvino-genai"] and about["cpu"][0] <= about["cpu"][1]
    assert unknown["error"].startswith("TypeError: ")
    assert closed["peak_rss_mib"] > 10


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child does not begin with its parent's peak")
def test_peak_memory_is_the_workers_own(tmp_path: Path) -> None:
    ballast = np.ones(400 << 20, np.uint8)
    with Worker("lira-edge", sys.executable, tmp_path / "log") as worker:
        worker.close()
    assert ballast.nbytes >> 20 == 400
    assert worker.peak_rss_mib is not None and 10 < worker.peak_rss_mib < 300


def test_only_foreign_errors_are_named_by_their_type(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (found,) = served("lira-edge", {"do": "prepare", "bundle": str(tmp_path / "none"), "threads": 1})
    assert found["error"].startswith(f"{tmp_path}/none is not a folder")
    assert "Traceback" in capfd.readouterr().err


def test_all_sides_get_the_same_prompt() -> None:
    ids = prompt_ids(1000, 64)
    assert ids == prompt_ids(1000, 64) and len(set(ids)) > 48
    assert min(ids) >= 0 and max(ids) < 1000
