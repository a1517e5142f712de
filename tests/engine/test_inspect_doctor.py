"""`lira-edge inspect` and `lira-edge doctor` say what is there."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lira_engine import LiraError, doctor, inspect
from lira_engine.build import build
from lira_engine.engines.record import Verified, read_build
from lira_engine.engines.verified import this_setting
from lira_engine.inspect import describe
from lira_engine.main import main
from lira_engine.system import machine
from lira_engine.system.extras import installed
from lira_engine.trt import flavour


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
    row = r"^llm +fp32 +[\d.]+ KiB +\d\.\de-\d\d +\d+\.\d s *$"
    assert "llm is done after" in printed and re.search(row, printed, re.M)
    assert "largest error on the check vectors" in printed
    folder = bundle_path / "engines" / "cpu-fp32"
    printed = run(capsys, "inspect", str(folder), "--verify")
    assert "engines for cpu, fp32" in printed and re.search(row, printed, re.M)
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
        name, extras = "checkpoint", ["export"]
        answer: Any = None

        def load(self) -> Any:
            return lambda path: self.answer

    entry = Entry()
    monkeypatch.setattr(metadata, "entry_points", lambda group: [entry])
    monkeypatch.setattr("lira_engine.system.extras.missing_packages", lambda extra: [])
    with pytest.raises(LiraError, match=r"no bundle \(no lira\.json\), no engine folder .*, no checkpoint$"):
        describe(tmp_path)
    entry.answer = ("checkpoint x", [("hidden_size", 64)])
    assert describe(tmp_path) == [("checkpoint x", [("hidden_size", "64")])]
    monkeypatch.setattr("lira_engine.system.extras.missing_packages", lambda extra: ["torch"])
    with pytest.raises(LiraError, match=r"checkpoint folders need pip install 'lira-edge\[export\]'"):
        describe(tmp_path)


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run(capsys, "doctor")
    for expected in (
        r"memory +[\d.]+ GiB",
        r"processor .*, \d+ cores",
        rf"onnxruntime +{re.escape(installed('onnxruntime') or '')}",
        r"cpu +yes",
        r"cuda +(yes|no)",
        r"tensorrt +(yes|no|build only)",
        r"tensorrt-rtx +(yes|no|build only)",
    ):
        assert re.search(expected, printed), expected


def test_free_swap_counts_as_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_meminfo", lambda: {"MemAvailable": 1 << 20, "SwapFree": 2 << 20})
    assert machine.available_mib() == 3072
    monkeypatch.setattr(machine, "_meminfo", lambda: {"MemAvailable": 1 << 20})
    assert machine.available_mib() == 1024


def test_doctor_on_a_bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_onnxruntime", lambda: (None, []))
    monkeypatch.setattr(doctor, "missing_packages", lambda extra: ["x"])
    tables = dict(doctor.examine())
    assert ("cpu", "no", "needs ONNX Runtime: pip install 'lira-edge[cpu]'") in tables["targets"]
    assert ("[export]", "lacks x", "pip install 'lira-edge[export]'") in tables["packages"]
    monkeypatch.setattr(doctor, "_onnxruntime", lambda: ("1.23.2", ["CPU"]))
    targets = dict(doctor.examine())["targets"]
    assert ("portable", "no", "needs onnxruntime 1.25 or newer, found 1.23.2") in targets
    assert targets[0][:2] == ("cpu", "yes")


Record = Callable[..., None]
ORIN = {
    "--query-gpu=name,memory.total,driver_version": ["Orin (nvgpu), [N/A], 540.4.0"],
    "--query-gpu=compute_cap": ["[N/A]"],
    "-f=${Version}": ["6.2+b77"],
    "-q": ["NV Power Mode: MAXN_SUPER", "2"],
}
RTX = {
    "--query-gpu=name,memory.total,driver_version": ["NVIDIA GeForce RTX 4090, 24564 MiB, 580.95.05"],
    "--query-gpu=compute_cap": ["8.9"],
}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Record:
    """record(answers, release, arch, packages...): what a machine's programs print, the line of its L4T file,
    and the versions of what is installed there (TensorRT by its module's name)."""

    def record(
        answers: dict[str, list[str]], release: str = "", arch: str = "x86_64", **packages: str
    ) -> None:
        monkeypatch.setattr(
            machine, "_answer", lambda command: next((answers[a] for a in command if a in answers), [])
        )
        board = tmp_path / "nv_tegra_release"
        if release:
            board.write_text(release + "\n")
        monkeypatch.setattr(machine, "_L4T", board)
        model = tmp_path / "model"
        model.write_bytes(b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0")
        monkeypatch.setattr(machine, "_MODEL", model)
        compatible = tmp_path / "compatible"
        compatible.write_bytes(b"nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0")
        monkeypatch.setattr(machine, "_COMPATIBLE", compatible)
        monkeypatch.setattr(doctor.platform, "machine", lambda: arch)
        for module_ in (doctor, inspect):
            monkeypatch.setattr(module_, "installed", lambda package: packages.get(package.replace("-", "_")))

        def module(name: str) -> ModuleType:
            if name not in packages:
                raise ImportError(f"No module named '{name}'")
            found = ModuleType(name)
            found.__version__ = packages[name]  # type: ignore[attr-defined]
            return found

        monkeypatch.setattr(flavour.importlib, "import_module", module)

    return record


def targets() -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in dict(doctor.examine())["targets"]}


R36 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"


def test_doctor_on_a_jetson(recorded: Record) -> None:
    recorded(ORIN, R36, "aarch64", tensorrt="10.3.0", pycuda="2024.1.2")
    tables = dict(doctor.examine())
    assert ("gpu", "Orin (nvgpu), [N/A], 540.4.0 (driver)") in tables["machine"]
    board = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super (p3768-0000+p3767-0005-super)"
    for line in (board, "L4T 36.4.3"):
        assert ("jetson", line) in tables["machine"]
    assert ("jetson", "JetPack 6.2+b77") in tables["machine"]
    assert ("power mode", "MAXN_SUPER") in tables["machine"]
    assert targets()["tensorrt"] == ("yes", "tensorrt 10.3.0")
    assert targets()["tensorrt-rtx"] == (
        "no",
        "is for x86-64 Linux and Windows, this is aarch64: take tensorrt",
    )
    assert "problems" not in tables


def test_doctor_says_what_does_not_fit_a_jetson(recorded: Record) -> None:
    recorded(ORIN, R36, "aarch64", tensorrt="10.7.0", pycuda="2024.1.2")
    assert targets()["tensorrt"] == ("yes", "tensorrt 10.7.0; JetPack 6.2+b77 comes with TensorRT 10.3")
    recorded(ORIN, R36, "aarch64", tensorrt="10.3.0")
    answer, note = targets()["tensorrt"]
    assert answer == "build only" and "running needs pycuda: pip install 'lira-edge[tensorrt]'" in note
    recorded(ORIN, R36, "aarch64")
    answer, note = targets()["tensorrt"]
    assert answer == "no" and "sudo apt install tensorrt python3-libnvinfer" in note


def test_doctor_on_a_jetson_without_nvidia_smi(recorded: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded({}, R36, "aarch64", tensorrt="10.3.0", pycuda="2024.1.2")
    monkeypatch.setattr(doctor, "_onnxruntime", lambda: ("1.23.0", ["CUDA", "CPU"]))
    assert ("gpu", "the board's own (no answer from nvidia-smi)") in dict(doctor.examine())["machine"]
    assert targets()["cuda"] == ("yes", "--provider cuda")
    assert targets()["tensorrt"] == ("yes", "tensorrt 10.3.0")


def test_tensorrt_of_a_jetpack() -> None:
    assert doctor.tensorrt_of("6.2+b77") == doctor.tensorrt_of("6.2.1+b38") == (10, 3)
    assert doctor.tensorrt_of("7.2.2-b10") == (11, 4, 1)
    assert doctor.tensorrt_of("7.2+b12") == doctor.tensorrt_of("7.2.0") == (10, 16)
    assert doctor.tensorrt_of("7.0") is doctor.tensorrt_of("7.2.1") is doctor.tensorrt_of("5.1.2") is None


def test_doctor_on_an_rtx_machine(recorded: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(RTX, tensorrt_rtx="1.7.1", pycuda="2025.1")
    shown = "NVIDIA GeForce RTX 4090, 24564 MiB, 580.95.05 (driver), compute capability 8.9"
    assert ("gpu", shown) in dict(doctor.examine())["machine"]
    assert targets()["tensorrt-rtx"] == ("yes", "tensorrt-rtx 1.7.1")
    assert targets()["cuda"][0] == "no"
    monkeypatch.setattr(doctor, "_onnxruntime", lambda: ("1.32.0", ["Tensorrt", "CUDA", "CPU"]))
    assert targets()["cuda"] == ("yes", "--provider cuda, tensorrt")
    recorded({**RTX, "--query-gpu=compute_cap": ["6.1"]}, tensorrt_rtx="1.7.1", pycuda="2025.1")
    expected = "NVIDIA GeForce RTX 4090 has compute capability 6.1, expected 7.5 or newer"
    assert targets()["tensorrt-rtx"] == ("no", expected)
    recorded({}, tensorrt_rtx="1.7.1")  # engines for RTX are built without a GPU
    assert targets()["tensorrt-rtx"] == ("build only", "tensorrt-rtx 1.7.1, no NVIDIA GPU found")
    for target in ("cuda", "tensorrt"):  # and not what to install
        assert targets()[target][1].startswith("no NVIDIA GPU found")
    recorded(RTX)
    answer, note = targets()["tensorrt-rtx"]
    assert answer == "no" and note.endswith("pip install 'lira-edge[rtx]'")


@pytest.mark.parametrize(
    ("cuda", "system", "driver", "least"),
    [
        ("13", "Linux", "575.64.03", 580),
        ("13", "Windows", "577.00", 580),
        ("13", "Linux", "580.65.06", None),
        ("12", "Linux", "530.41.03", 535),
        ("12", "Linux", "535.104.05", None),
        ("12", "Windows", "536.99", 537),
    ],
)
def test_doctor_compares_the_driver(
    recorded: Record,
    monkeypatch: pytest.MonkeyPatch,
    cuda: str,
    system: str,
    driver: str,
    least: int | None,
) -> None:
    said = {**RTX, "--query-gpu=name,memory.total,driver_version": [f"RTX 4090, 24564 MiB, {driver}"]}
    packages = {f"tensorrt_rtx_cu{cuda}": "1.7.1", "tensorrt_rtx": "1.7.1", "pycuda": "2025.1"}
    recorded(said, **packages)
    monkeypatch.setattr(doctor.platform, "system", lambda: system)
    if least is None:
        assert targets()["tensorrt-rtx"] == ("yes", "tensorrt-rtx 1.7.1")
    else:
        note = f"running needs driver {least} or newer, found {driver}: update the driver"
        assert targets()["tensorrt-rtx"] == ("build only", f"tensorrt-rtx 1.7.1; {note}")
        recorded(said, tensorrt="11.4.1", **{f"tensorrt_cu{cuda}": "11.4.1"})
        assert targets()["tensorrt"] == ("no", f"tensorrt 11.4.1; {note}")


def test_doctor_says_which_engines_a_card_takes(recorded: Record) -> None:
    recorded({**RTX, "--query-gpu=compute_cap": ["7.5"]}, tensorrt_rtx="1.7.1", pycuda="2025.1")
    note = "tensorrt-rtx 1.7.1; for NVIDIA GeForce RTX 4090: `build ... --compute-capability 7.5`"
    assert targets()["tensorrt-rtx"] == ("yes", note)
    recorded({**RTX, "--query-gpu=compute_cap": ["9.0"]}, tensorrt_rtx="1.7.1", pycuda="2025.1")
    note = "it does not build for NVIDIA GeForce RTX 4090 (9.0): take --target cuda"
    assert targets()["tensorrt-rtx"] == ("no", note)


@pytest.mark.parametrize(
    ("capability", "command"),
    [
        (
            "8.9",
            "tensorrt-rtx --precision int4 --lm-head-parts 4 --compute-capability 8.9 --block-size 64",
        ),
        ("7.5", "tensorrt-rtx --precision fp16 --lm-head-parts 4 --compute-capability 7.5"),
        ("9.0", "cuda --precision fp16"),
    ],
)
def test_the_build_that_a_card_takes_is_named(
    bundle_path: Path, recorded: Record, monkeypatch: pytest.MonkeyPatch, capability: str, command: str
) -> None:
    folder = bundle_path / "engines" / "tensorrt-rtx-int4"
    built = read_build(build(bundle_path, "cpu", "fp32").rename(folder), "")
    options = {"compute_capabilities": ["8.6"], "lm_head_parts": 4, "block_size": 64, "lm_head_bits": 4}
    record = dataclasses.replace(built, target="tensorrt-rtx", precision="int4", options=options)
    recorded({**RTX, "--query-gpu=compute_cap": [capability]})
    monkeypatch.setattr(inspect, "usable_build", lambda *_: record)
    ((_, said),) = dict(describe(bundle_path))["engines"]
    assert said.endswith(f"run `lira-edge build {bundle_path} --target {command}`")


def test_engines_that_cannot_run_here_are_not_ready(
    bundle_path: Path, recorded: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`inspect BUNDLE` and `doctor BUNDLE` call those ready that `run` takes."""
    options = {"compute_capabilities": ["8.6"], "lm_head_parts": 1}
    folder = bundle_path / "engines" / "tensorrt-rtx-fp16"
    built = read_build(build(bundle_path, "cpu", "fp32").rename(folder), "")
    record = dataclasses.replace(built, target="tensorrt-rtx", precision="fp16", options=options)
    recorded(RTX)
    monkeypatch.setattr(inspect, "usable_build", lambda *_: record)

    def said() -> str:
        (row,) = dict(doctor.examine(bundle_path))[f"engines of {bundle_path}"]
        assert dict(describe(bundle_path))["engines"] == [row]
        return row[1]

    command = f"{bundle_path} --target tensorrt-rtx --precision fp16"
    assert said() == (
        "built, but for compute capability 8.6, NVIDIA GeForce RTX 4090 has 8.9: "
        f"run `lira-edge build {command} --compute-capability 8.9`"
    )
    options["compute_capabilities"] = []
    assert said() == "built, but target tensorrt-rtx needs pycuda: pip install 'lira-edge[rtx]'"
    recorded(RTX, pycuda="2025.1")
    assert re.match(rf"built, but .* were not verified on a device: run `lira-edge verify {command}`", said())
    verified = Verified("now", this_setting("tensorrt-rtx"), {}, 0, None)
    record = dataclasses.replace(record, verified=verified)
    assert said() == "ready"
    recorded(
        {**RTX, "--query-gpu=name,memory.total,driver_version": ["NVIDIA GeForce RTX 4090, 1 MiB, 590.1"]},
        pycuda="2025.1",
    )
    assert "were verified on NVIDIA GeForce RTX 4090, driver 580.95.05" in said()


def test_cpu_engines_are_not_ready_without_onnx_runtime(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(bundle_path)
    assert dict(describe(bundle_path))["engines"] == [("cpu-fp32", "ready")]

    def missing(name: str) -> ModuleType:
        raise LiraError("ONNX Runtime is not installed")

    monkeypatch.setattr(inspect, "import_module", missing)
    said = "built, but ONNX Runtime is not installed"
    assert dict(describe(bundle_path))["engines"] == [("cpu-fp32", said)]


def test_an_engine_folder_says_whether_run_takes_it(
    bundle_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = build(bundle_path)
    assert re.search(r"state +ready", run(capsys, "inspect", str(folder)))
    record = json.loads((folder / "build.json").read_text())
    (folder / "build.json").write_text(json.dumps(record | {"lira_edge_version": "0.0.1"}))
    command = f"run `lira-edge build {bundle_path} --target cpu --precision fp32`"
    said = " ".join(run(capsys, "inspect", str(folder)).split())
    assert re.search(r"state .*was built by lira-edge 0\.0\.1", said) and command in said
    (folder / "build.json").write_text("")
    with pytest.raises(LiraError, match=re.escape(command)):
        describe(folder)


def test_doctor_replaces_the_wheel_that_is_in_the_way(recorded: Record) -> None:
    recorded(RTX, onnxruntime="1.32.0")
    rows = {name: rest for name, *rest in dict(doctor.examine())["packages"]}
    assert rows["[cuda]"][1] == "pip uninstall -y onnxruntime, then pip install 'lira-edge[cuda]'"


def test_doctor_with_both_wheels(recorded: Record) -> None:
    recorded(RTX, onnxruntime="1.23.2", onnxruntime_gpu="1.23.2")
    ((problem,),) = dict(doctor.examine())["problems"]
    assert "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'lira-edge[cuda]'" in problem
