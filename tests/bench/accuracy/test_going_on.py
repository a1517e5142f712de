"""Evaluations that were stopped, that are finished, and that run over Ray."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lira_bench.accuracy import ray_workers, run
from lira_engine.system import extras

if TYPE_CHECKING:
    from .conftest import Evaluate


def test_a_killed_evaluation_goes_on_to_the_same_bytes(evaluate: Evaluate, grounded: Path) -> None:
    asked = evaluate.process("gcg", "out")
    process = subprocess.Popen(asked, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    grown = Path("out/samples.jsonl")
    deadline = time.monotonic() + 60
    while not (grown.is_file() and grown.read_bytes().count(b"\n") >= 2):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert evaluate.report("out")["complete"] is False
    before = grown.read_bytes()
    assert 2 <= before.count(b"\n") < len(evaluate.samples(grounded))
    with grown.open("ab") as file:
        file.write(b'{"item": "gcg.json[5]", "im')
    assert evaluate("gcg", "out") == 0
    assert evaluate.same_bytes("out", grounded)
    assert grown.read_bytes().startswith(before[: before.rfind(b"\n") + 1])


def test_a_finished_evaluation_asks_nothing_again(
    evaluate: Evaluate, grounded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(grounded, "out")

    def refuse(*_: object) -> Iterator[Any]:
        raise AssertionError("asked again")

    monkeypatch.setattr(run, "_in_this_process", refuse)
    assert evaluate("gcg", "out") == 0
    assert evaluate.same_bytes("out", grounded)


def test_another_evaluation_in_the_same_folder_is_refused(
    evaluate: Evaluate, grounded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(grounded, "out")
    assert evaluate("gcg", "out", "--precision", "int4") == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "precision fp32, this one has int4" in error and "--overwrite" in error
    assert evaluate.same_bytes("out", grounded)
    changed = Path("changed")
    shutil.copytree(evaluate.data, changed)
    grown = json.loads((changed / "gcg.json").read_text())
    (changed / "gcg.json").write_text(json.dumps(grown[:2]))
    assert evaluate("gcg", "out", data=changed) == 2
    assert "data.gcg.json" in capsys.readouterr().err
    assert evaluate("gcg", "out", "--overwrite", data=changed) == 0
    assert evaluate.report("out")["counts"]["entries"] == 2


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
def test_ray_gives_the_same_bytes(evaluate: Evaluate, grounded: Path) -> None:
    asked = evaluate.process("gcg", "out", "--workers", "ray")
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert evaluate.same_bytes("out", grounded)


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
def test_missing_engines_are_found_before_ray_starts(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_workers, "records", None)
    assert evaluate("gcg", "out", "--workers", "ray", "--precision", "int8") == 2
    assert "--precision int8" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
def test_an_error_in_a_ray_worker_is_a_one_line_error(evaluate: Evaluate) -> None:
    bundle = Path("bundle").resolve()
    shutil.copytree(evaluate.bundle, bundle)
    engine = bundle / "engines" / "cpu-fp32" / "sefe.onnx"
    engine.write_bytes(engine.read_bytes()[:-1])
    asked = evaluate.process("pope", "out", "--workers", "ray", "--limit", 2, bundle=bundle)
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "sefe.onnx was altered" in done.stderr and "Traceback" not in done.stderr
    assert not evaluate.samples("out")


def test_a_missing_matplotlib_is_reported_before_the_work(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extras, "missing_packages", lambda extra: [extra])
    assert evaluate("attreval", "out") == 2
    assert extras.install_line("bench") in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_missing_ray_is_a_one_line_error(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_workers, "missing_packages", lambda extra: [extra])
    assert evaluate("gcg", "out", "--workers", "ray") == 2
    assert extras.install_line("ray") in capsys.readouterr().err
    assert not Path("out").exists()
