"""`lira-edge inspect` describes a folder, and says whether engines are ready."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lira_engine import LiraError, doctor, inspect
from lira_engine.build import build
from lira_engine.engines.record import Verified, read_build
from lira_engine.inspect import describe
from lira_engine.ort.target import CpuTarget
from lira_engine.system.load import QUIET
from lira_engine.targets import target_named

Record = Callable[..., None]
RTX = {
    "--query-gpu=name,memory.total,driver_version": ["NVIDIA GeForce RTX 4090, 24564 MiB, 580.95.05"],
    "--query-gpu=compute_cap": ["8.9"],
}


def test_inspect_describes_a_bundle(bundle_path: Path, printed_by: Any) -> None:
    printed = printed_by("inspect", str(bundle_path))
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


def test_inspect_describes_built_engines(bundle_path: Path, printed_by: Any) -> None:
    printed = printed_by("build", str(bundle_path), "--threads", "1")
    row = r"^llm +fp32 +[\d.]+ KiB +\d\.\de-\d\d +\d+\.\d s *$"
    assert "llm is done after" in printed and re.search(row, printed, re.M)
    assert "largest error on the check vectors" in printed
    folder = bundle_path / "engines" / "cpu-fp32"
    printed = printed_by("inspect", str(folder), "--verify")
    assert "engines for cpu, fp32" in printed and re.search(row, printed, re.M)
    assert re.search(r"sefe\.onnx +[\d.]+ KiB +[0-9a-f]{12}", printed)
    assert re.search(r"cpu-fp32 +ready", printed_by("inspect", str(bundle_path)))
    (folder / "sefe.onnx").unlink()
    assert re.search(
        r"cpu-fp32 +.*sefe\.onnx is missing; run `lira-edge build", printed_by("inspect", str(bundle_path))
    )
    with pytest.raises(LiraError, match=r"sefe\.onnx is missing"):
        describe(folder)


def test_verify_reads_every_file_again(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only those whose hash is not in the cache."""
    asked: list[str] = []
    bundle, folder = inspect.Bundle.open, inspect.verify_folder
    monkeypatch.setattr(
        inspect.Bundle, "open", lambda path, verify="hashes": asked.append(verify) or bundle(path, verify)
    )
    monkeypatch.setattr(inspect, "verify_folder", lambda *given: asked.append(given[-1]) or folder(*given))
    built = build(bundle_path, threads=1)
    for path in (bundle_path, built):
        for verify, first in ((False, "hashes"), (True, "full")):
            asked.clear()
            describe(path, verify)
            assert first in asked and (verify or "full" not in asked)


@pytest.mark.parametrize(
    "size, text", [(0, "0.0 KiB"), (2**20 - 1, "1024.0 KiB"), (2**20, "1.0 MiB"), (5 << 29, "2560.0 MiB")]
)
def test_sizes_have_their_units(size: int, text: str) -> None:
    assert inspect.size_text(size) == text


@pytest.mark.parametrize("seconds, text", [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (750, "12 min")])
def test_durations_have_their_units(seconds: float, text: str) -> None:
    assert inspect.duration_text(seconds) == text


def test_a_quiet_machine_is_not_told_of() -> None:
    told = {
        others: inspect._speedup(SimpleNamespace(speedups={"sefe": 1.5}, others={"sefe": others}), "sefe")
        for others in (0.0, QUIET, 0.7)
    }
    assert told == {
        0.0: "int8 1.50x fp32",
        QUIET: "int8 1.50x fp32",
        0.7: "int8 1.50x fp32, others used 0.7 cores meanwhile",
    }


def test_inspect_asks_other_packages_about_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_an_unfit_engine_names_the_build_for_the_card(
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
    """`inspect BUNDLE` and `doctor BUNDLE` call engines ready if `run` accepts them."""
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
    lacking = "CUDA's calls need pycuda or cuda-bindings: pip install cuda-bindings"
    assert said() == f"built, but target tensorrt-rtx: {lacking}"
    recorded(RTX, pycuda="2025.1")
    assert re.match(rf"built, but .* were not verified on a device: run `lira-edge verify {command}`", said())
    verified = Verified("now", target_named("tensorrt-rtx").setting(), {}, 0, None)
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

    def missing(target: CpuTarget) -> None:
        raise LiraError("ONNX Runtime is not installed")

    monkeypatch.setattr(CpuTarget, "check_runtime", missing)
    said = "built, but ONNX Runtime is not installed"
    assert dict(describe(bundle_path))["engines"] == [("cpu-fp32", said)]


def test_inspect_says_whether_an_engine_folder_is_ready(bundle_path: Path, printed_by: Any) -> None:
    folder = build(bundle_path)
    assert re.search(r"state +ready", printed_by("inspect", str(folder)))
    record = json.loads((folder / "build.json").read_text())
    (folder / "build.json").write_text(json.dumps(record | {"lira_edge_version": "0.0.1"}))
    command = f"run `lira-edge build {bundle_path} --target cpu --precision fp32`"
    said = " ".join(printed_by("inspect", str(folder)).split())
    assert re.search(r"state .*was built by lira-edge 0\.0\.1", said) and command in said
    (folder / "build.json").write_text("")
    with pytest.raises(LiraError, match=re.escape(command)):
        describe(folder)
