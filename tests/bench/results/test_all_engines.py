"""`lira-edge bench --all`: every engine in a process of its own, one table, one picture."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lira_bench.results import all_engines, engine_process
from lira_bench.results.all_engines import IMAGES, bench_all, machine_facts
from lira_bench.results.submitted import read_submitted
from lira_bench.sample_image import SIZE
from lira_bench.speed.request import Request
from lira_engine import LiraError
from lira_engine.main import main
from lira_engine.system.machine import this_machine

ROOT = Path(__file__).parents[3]


def bench(*arguments: str | Path) -> int:
    """Run the command; return its exit code."""
    with pytest.raises(SystemExit) as caught:
        main(["bench", *map(str, arguments)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def bundle(accuracy_bundle: Path, tmp_path: Path) -> Path:
    """Engines cpu-fp32 and cpu-int4, and cuda-fp16 of a build that lies here and is nobody's."""
    copy = tmp_path / "bundle"
    shutil.copytree(accuracy_bundle, copy)
    foreign = copy / "engines" / "cuda-fp16"
    foreign.mkdir()
    (foreign / "build.json").write_text("{}")
    return copy


def test_all_engines_are_measured_in_processes_of_their_own(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "out", tmp_path / "for-others.json"
    asked = ("--runs", "1", "--warmup", "0", "--threads", "1", "--images", ROOT / "assets" / "sample.png")
    assert bench(bundle, "--all", *asked, "-o", out, "--submit", file, "--json", "-") == 0
    printed = capsys.readouterr().out
    *_, again, figures = printed.splitlines()
    assert again.startswith(f"reproduce: lira-edge bench {bundle} --output {out} --images")
    assert again.endswith(f"--all --submit {file} --json -")
    found = json.loads((out / "results.json").read_text())
    assert json.loads(figures) == {**found, "output": str(out)}
    assert [(one["name"], one["status"]) for one in found["engines"]] == [
        ("cpu-fp32", "measured"),
        ("cpu-int4", "measured"),
        ("cuda-fp16", "refused"),
    ]
    fp32, int4, cuda = found["engines"]
    assert 0 < fp32["error"]["value"] < 1e-4 < int4["error"]["value"] and fp32["error"]["by"] == "build"
    assert fp32["bytes"] > int4["bytes"] > 10**6 and cuda["bytes"] is None
    assert "build.json is not the record of a build" in cuda["reason"]
    for one in (fp32, int4):
        record = json.loads((out / one["name"] / "bench.json").read_text())
        assert record["runs"] == 1 and f"{record['target']}-{record['precision']}" == one["name"]
        assert one["figures"]["ttft_s"] == record["ttft_s"]["median"] > 0
        assert one["figures"]["peak_rss_mib"] == record["peak_rss_mib"] > 50
        assert (out / one["name"] / "stages.png").stat().st_size > 500
    assert 0.1 < found["drift"] < 10
    assert found["asked"]["pictures"]["name"] == "sample.png"
    assert sorted(path.name for path in out.iterdir()) == [
        "cpu-fp32", "cpu-int4", "results.json", "results.md", "results.png",
    ]  # fmt: skip
    assert Image.open(out / "results.png").width > 1000
    text = (out / "results.md").read_text()
    for part in ("| cpu-int4 |", " refused |", "This is not LIRA-2B", "cuda-fp16: "):
        assert part in text and part.strip("| ") in printed, part
    told = read_submitted(file)
    assert [one.name for one in told.engines] == ["cpu-fp32", "cpu-int4", "cuda-fp16"]
    assert str(tmp_path) not in file.read_text() and "It holds" in printed and "no host name" in printed
    # Again: nothing is lost without being asked for.
    assert bench(bundle, "--all", *asked, "-o", out) == 2
    assert "add --overwrite" in capsys.readouterr().err
    assert json.loads((out / "results.json").read_text()) == found


def test_an_engine_that_fails_ends_no_other(
    bundle: Path, tmp_path: Path, measuring: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = "its process was killed by signal 9 (most likely too little memory)"
    measuring.reasons, measuring.without = {"cpu-fp32": reason}, {"cpu-fp32"}
    out, file = tmp_path / "out", tmp_path / "for-others.json"
    assert bench(bundle, "--all", "-o", out, "--submit", file) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: 1 of 3 engines failed, cpu-fp32: {reason}; ")
    assert len(printed.err.splitlines()) == 1 and "reproduce: " in printed.out
    found = json.loads((out / "results.json").read_text())
    assert [one["status"] for one in found["engines"]] == ["failed", "measured", "refused"]
    assert found["engines"][0]["reason"] == reason and found["drift"] is None
    assert [one.status for one in read_submitted(file).engines] == ["failed", "measured", "refused"]
    assert f"cpu-fp32: {reason}" in (out / "results.md").read_text()
    # What it wrote itself it replaces.
    measuring.reasons, measuring.without = {}, set()
    assert bench(bundle, "--all", "-o", tmp_path / "again", "--submit", file) == 0
    assert [one.status for one in read_submitted(file).engines] == ["measured", "measured", "refused"]


def test_figures_of_a_busy_machine_are_kept_and_end_with_an_error(
    bundle: Path, tmp_path: Path, measuring: Any
) -> None:
    measuring.reasons = {"cpu-int4": "the load was not quiet but busy"}
    measured = bench_all(Request(bundle, tmp_path / "out", require_quiet=True))
    assert [one.status for one in measured.results.engines] == ["measured", "measured", "refused"]
    with pytest.raises(LiraError, match=r"1 of 3 engines failed, cpu-int4: the load was not quiet"):
        measured.check()
    assert "not quiet |" in (measured.folder / "results.md").read_text()
    assert [request.require_quiet for request in measuring.asked] == [
        True,
        True,
        False,
    ]  # the last is for drift


def test_nothing_is_submitted_without_a_measured_engine(
    bundle: Path, tmp_path: Path, measuring: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    measuring.without = {"cpu-fp32", "cpu-int4"}
    measuring.reasons = dict.fromkeys(measuring.without, "no")
    file = tmp_path / "for-others.json"
    assert bench(bundle, "--all", "-o", tmp_path / "out", "--submit", file) == 2
    assert "2 of 3 engines failed" in capsys.readouterr().err and not file.exists()


def test_engines_get_the_same_request_and_the_first_one_twice(
    bundle: Path, tmp_path: Path, measuring: Any, measured_record: dict[str, Any]
) -> None:
    out = tmp_path / "out"
    measuring.record = lambda request: {
        **measured_record,
        "total_s": {"median": 0.6 if request.output.name == ".again" else 0.5},
    }
    asked = Request(bundle, out, "gcg", runs=3, warmup=2, max_tiles=4, threads=2, draft="off", all=True)
    results = bench_all(asked).results
    assert [f"{one.target}-{one.precision}" for one in measuring.asked] == [
        "cpu-fp32",
        "cpu-int4",
        "cpu-fp32",
    ]
    for one in measuring.asked:
        assert (one.task, one.runs, one.warmup, one.max_tiles, one.threads, one.draft) == (
            "gcg",
            3,
            2,
            4,
            2,
            "off",
        )
        assert not one.all and one.submit is None
    found = results.engines[0].figures
    assert found is not None and found.card is not None
    assert (found.card.power_w, found.card.clock_mhz, found.card.peak_memory_mib) == (5.0, None, 10)
    assert results.drift == pytest.approx(1.2) and not (out / ".again").exists()
    assert "took 1.20 of its first time" in (out / "results.md").read_text()


def test_an_old_record_does_not_stand_for_an_engine_that_fails_now(
    bundle: Path, tmp_path: Path, measuring: Any
) -> None:
    out = tmp_path / "out"
    bench_all(Request(bundle, out))
    measuring.without, measuring.reasons = {"cpu-int4"}, {"cpu-int4": "no"}
    results = bench_all(Request(bundle, out, overwrite=True)).results
    assert [one.status for one in results.engines] == ["measured", "failed", "refused"]


def test_an_interruption_leaves_no_results(bundle: Path, tmp_path: Path, measuring: Any) -> None:
    out = tmp_path / "out"
    bench_all(Request(bundle, out))

    def stop(doing: str) -> None:
        if doing.startswith("cpu-int4"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench_all(Request(bundle, out, overwrite=True), stop)
    assert not (out / "results.json").exists() and not (out / "cpu-int4" / "bench.json").exists()
    with pytest.raises(LiraError, match="add --overwrite"):  # the first engine's record is whole
        bench_all(Request(bundle, out))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--all", "--precision", "int4"), "--all measures every engine"),
        (("--all", "--target", "cuda"), "--all measures every engine"),
        (("--all", "--peer", "genai"), "--all and --peer"),
        (("--all", "--task", "caption"), "--task is 'caption'"),
        (("--all", "--images", "nowhere"), "nowhere is neither an image"),
        (("--all", "--submit", "."), "--submit . is a folder"),
        (("--all", "--submit", "out"), "--submit out is a folder"),
        (("--all", "--submit", "out/results.json"), "is a file of the results themselves"),
        (("--all", "--submit", "file/x.json"), "file is a file, expected a folder for x.json"),
        (("--all", "--submit", "file"), "--submit file is there already, and no file that it wrote"),
        (("--all", "--driver", "pycuda"), "target cpu takes no driver, onnxruntime needs none"),
        (("--submit", "x.json"), "add --all"),
    ],
)
def test_wrong_options_are_refused_before_measuring(
    bundle: Path,
    tmp_path: Path,
    measuring: Any,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert bench(bundle, *arguments, "-o", "out") == 2
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists() and not measuring.asked


def test_a_bundle_without_engines_for_this_machine_is_refused(
    bundle: Path, tmp_path: Path, measuring: Any
) -> None:
    for name in ("cpu-fp32", "cpu-int4"):
        shutil.rmtree(bundle / "engines" / name)
    with pytest.raises(
        LiraError, match=r"none of 1 built engines runs on this machine; cuda-fp16: .*lira-edge build"
    ):
        bench_all(Request(bundle, tmp_path / "out"))
    shutil.rmtree(bundle / "engines")
    with pytest.raises(LiraError, match="has no engines: run `lira-edge build"):
        bench_all(Request(bundle, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_photographs_of_the_repository_are_known() -> None:
    for digest, name in IMAGES.items():
        assert all_engines.sha256_of(ROOT / "assets" / name) == digest
    generated = all_engines._pictures(all_engines.find_images(None))
    assert (generated.name, (generated.width, generated.height)) == ("generated image", SIZE)


@pytest.mark.parametrize(
    ("system", "told"),
    [
        ("Linux 6.8.0-45-generic x86_64", "Linux 6.8.0 x86_64"),
        ("Linux 5.15.148-tegra aarch64", "Linux 5.15.148 aarch64"),
        ("Linux 6.1.0.somebodys+ x86_64", "Linux 6.1.0 x86_64"),
        ("Linux somebodys x86_64", "Linux  x86_64"),
        ("Windows 11 AMD64", "Windows 11 AMD64"),
        ("Windows 2022Server AMD64", "Windows 2022 AMD64"),
    ],
)
def test_a_kernel_is_told_by_its_number(system: str, told: str) -> None:
    machine = this_machine()
    object.__setattr__(machine, "system", system)
    assert machine_facts(machine, None, {}).system == told


# The process


def a_request(bundle: Path, out: Path) -> Request:
    return Request(bundle, out, runs=1, warmup=0, threads=1, precision="int4")


def test_a_process_that_gets_an_interrupt_goes_on(
    accuracy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The terminal sends Ctrl-C to both. Who started the process ends it."""
    started: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(engine_process.subprocess, "Popen", recording(started))
    doing: list[str] = []

    def progress(what: str) -> None:
        doing.append(what)
        os.kill(started[0].pid, signal.SIGINT)

    log = tmp_path / "log.txt"
    assert engine_process.measure_apart(a_request(accuracy_bundle, tmp_path / "out"), log, progress) is None
    assert "run 1 of 1" in doing and (tmp_path / "out" / "bench.json").exists()
    assert log.read_text() == "" and signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_an_interruption_ends_the_process(
    accuracy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(engine_process.subprocess, "Popen", recording(started))

    def progress(what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine_process.measure_apart(a_request(accuracy_bundle, tmp_path / "out"), tmp_path / "log", progress)
    assert started[0].returncode == -signal.SIGKILL and not (tmp_path / "out" / "bench.json").exists()


def recording(started: list[subprocess.Popen[bytes]]) -> Any:
    real = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(real(*arguments, **options))
        return started[-1]

    return start


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("kill -9 $$", "its process was killed by signal 9 (most likely too little memory): see "),
        ("read x; kill -11 $$", "its process was killed by signal 11: see "),
        ('read x; echo \'{"doing": "run 1"}\'; exit 3', "its process ended with code 3: see "),
        ('read x; echo \'{"error": "no card"}\'', "no card"),
        ("read x; echo '{\"error\": null}'", "it wrote no bench.json"),
        ("read x; echo '{\"error\": null}'; exit 139", "its process ended with code 139: see "),
        ("read x; echo 'Warning: not JSON'", "its process printed 'Warning: not JSON'"),
        ("read x", "its process ended with code 0: see "),
    ],
)
def test_how_a_process_ended_is_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    found = engine_process.measure_apart(
        a_request(tmp_path, tmp_path / "out"), tmp_path / "log", lambda doing: None
    )
    assert found is not None and found.startswith(reason)


def test_errors_of_the_process_are_told_on_one_line(tmp_path: Path) -> None:
    """It is no bundle: a LiraError, without a traceback."""
    log = tmp_path / "log.txt"
    found = engine_process.measure_apart(
        a_request(tmp_path / "b\nc", tmp_path / "out"), log, lambda doing: None
    )
    assert found is not None and "is not a folder, expected a bundle" in found and "\n" not in found
    assert log.read_text() == ""


def test_a_request_reaches_the_process_as_it_is(tmp_path: Path) -> None:
    request = Request(
        Path(os.fsdecode(b"a\xff b")),
        Path("-o"),
        "gcg",
        "it's",
        Path("images"),
        draft="off",
        driver="pycuda",
        peer=("torch",),
    )
    assert engine_process._request(engine_process._line(request)) == request


def test_a_driver_is_for_the_engines_that_take_one(
    bundle: Path, tmp_path: Path, measuring: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_engines, "_driven", lambda one: one.name == "cpu-int4")
    bench_all(Request(bundle, tmp_path / "out", driver="pycuda"))
    assert [request.driver for request in measuring.asked] == ["auto", "pycuda", "auto"]
