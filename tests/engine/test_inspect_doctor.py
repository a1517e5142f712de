"""`lira-edge inspect` and `lira-edge doctor` say what is there."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from lira_engine import LiraError, doctor, machine
from lira_engine.extras import installed
from lira_engine.inspect import describe
from lira_engine.main import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `lira-edge ARGUMENTS` prints."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    printed = capsys.readouterr()
    assert caught.value.code == 0, printed.err
    return printed.out


def test_inspect_bundle(bundle_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run(capsys, "inspect", str(bundle_path))
    for expected in (
        r"bundle tiny",
        r"hidden_size +8",
        r"<- pixel_values float32 \[T, 3, 4, 4\]",
        r"<- key_cache\.0 to \.1 float32 \[1, 1, 16, 4\]",
        r"-> mask_logits float32 \[1, 8, 8\]",
        r"vqa +\{expression\}",
        rf"none +run `lira-edge build {re.escape(str(bundle_path))}`",
    ):
        assert re.search(expected, printed), expected


def test_build_and_inspect_engines(bundle_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run(capsys, "build", str(bundle_path), "--threads", "1")
    assert re.search(r"^llm +\d+\.\d s$", printed, re.M)
    assert "largest error on the check vectors" in printed
    folder = bundle_path / "engines" / "cpu-fp32"
    printed = run(capsys, "inspect", str(folder), "--verify")
    assert "engines for cpu, fp32" in printed
    assert re.search(r"sefe\.onnx +[\d.]+ KiB +[0-9a-f]{12}", printed)
    assert re.search(r"cpu-fp32 +ready", run(capsys, "inspect", str(bundle_path)))
    (folder / "sefe.onnx").unlink()
    assert re.search(
        r"cpu-fp32 +.*sefe\.onnx is missing; run `lira-edge build", run(capsys, "inspect", str(bundle_path))
    )
    with pytest.raises(LiraError, match=r"sefe\.onnx is missing"):
        describe(folder)


def test_inspect_asks_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name, module = "checkpoint", "lira_export.checkpoint"
        answer: Any = None

        def load(self) -> Any:
            return lambda path: self.answer

    entry = Entry()
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry])
    monkeypatch.setattr("lira_engine.inspect.missing_packages", lambda extra: [])
    with pytest.raises(LiraError, match=r"no bundle \(no lira\.json\), no engine folder .*, no checkpoint$"):
        describe(tmp_path)
    entry.answer = ("checkpoint x", [("hidden_size", 64)])
    assert describe(tmp_path) == [("checkpoint x", [("hidden_size", "64")])]
    monkeypatch.setattr("lira_engine.inspect.missing_packages", lambda extra: ["torch"])
    with pytest.raises(LiraError, match=r"checkpoint folders need pip install 'lira-edge\[export\]'"):
        describe(tmp_path)


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run(capsys, "doctor")
    for expected in (
        r"memory +[\d.]+ GiB",
        r"processor .*, \d+ cores",
        rf"onnxruntime +{re.escape(installed('onnxruntime') or '')}",
        r"cpu +yes",
        r"tensorrt-rtx +no",
    ):
        assert re.search(expected, printed), expected


def test_doctor_on_a_bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_onnxruntime", lambda: (None, []))
    monkeypatch.setattr(doctor, "missing_packages", lambda extra: ["x"])
    tables = dict(doctor.examine())
    assert ("cpu", "no", "needs ONNX Runtime: pip install 'lira-edge[cpu]'") in tables["targets"]
    assert ("[export]", "lacks x", "pip install 'lira-edge[export]'") in tables["packages"]
    monkeypatch.setattr(doctor, "_onnxruntime", lambda: ("1.23.2", ["CPU"]))
    targets = dict(doctor.examine())["targets"]
    assert ("portable", "no", "needs onnxruntime 1.24 or newer, found 1.23.2") in targets
    assert targets[0][:2] == ("cpu", "yes")


def test_doctor_on_a_jetson_with_both_wheels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "installed", lambda package: "1.23.2")
    answers = {
        "nvidia-smi": ["Orin (nvgpu), [N/A], 540.4.0"],
        "dpkg-query": ["6.2+b77"],
        "nvpmodel": ["NV Power Mode: MAXN", "0"],
    }
    monkeypatch.setattr(machine, "_answer", lambda command: answers[command[0]])
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 38968081\n")
    monkeypatch.setattr(machine, "_L4T", release)
    tables = dict(doctor.examine())
    assert ("gpu", "Orin (nvgpu), [N/A], 540.4.0 (driver)") in tables["machine"]
    assert ("jetson", "L4T R36 (release), REVISION: 4.3, GCID: 38968081") in tables["machine"]
    assert ("jetson", "JetPack 6.2+b77") in tables["machine"]
    assert ("power mode", "MAXN") in tables["machine"]
    ((problem,),) = tables["problems"]
    assert "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'lira-edge[cuda]'" in problem
