"""Engines that this user did not build: checked before the first answer, or refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from lira_bench.peers.own import open_own_llm
from lira_engine import Bundle, LiraError, bisect, open_engines
from lira_engine import open as opening
from lira_engine.build import build
from lira_engine.bundle import schema
from lira_engine.bundle.integrity import sha256_of
from lira_engine.engines.origin import remember_built
from lira_engine.engines.record import BUILD_NAME, Verified, read_build
from lira_engine.engines.setting import Setting
from lira_engine.inspect import describe
from lira_engine.open import open_llm, open_stage
from lira_engine.ort import target as ort_target
from lira_engine.ort.device import CPU
from lira_engine.ort.options import CpuOptions
from lira_engine.system.cache import Durations, data_folder
from lira_engine.targets import TARGETS, target_named
from lira_engine.trust.known_builds import known_build
from lira_engine.verify import verify_engines
from lira_runtime.verify_answer import check_answer

pytestmark = pytest.mark.portable


@pytest.fixture(scope="module")
def nano(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("origin") / "nano"
    shutil.copytree(nano_bundle, root)
    build(root, "cpu", "fp32", threads=1)
    return root


@pytest.fixture
def own(nano: Path, tmp_path: Path) -> Path:
    """A copy of a bundle with engines that this user built."""
    return Path(shutil.copytree(nano, tmp_path / "nano"))


@pytest.fixture
def stranger(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same for a user who did not build them."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return own


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that ran on check vectors since."""
    ran: list[str] = []
    real = opening.stage_runs

    def recording(engines: object, stage: str, vectors: object) -> object:
        ran.append(stage)
        return real(engines, stage, vectors)  # type: ignore[arg-type]

    monkeypatch.setattr(opening, "stage_runs", recording)
    return ran


def remark(bundle: Path, target: str = "cpu", precision: str = "fp32", unverified: bool = False) -> str:
    with open_engines(bundle, target, precision, threads=1, unverified=unverified) as engines:
        return engines.remark


def state(bundle: Path) -> str:
    ((_, said),) = dict(describe(bundle))["engines"]
    return said


def relist(folder: Path) -> None:
    """Write the record again, with the hashes of the files as they are now, as a stranger may."""
    record = json.loads((folder / BUILD_NAME).read_text())
    record["files"] = {
        name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
        for name in record["files"]
    }
    (folder / BUILD_NAME).write_text(json.dumps(record))


def change_weights(folder: Path, stage: str = "pixel_decoder") -> None:
    """Turn the signs of a stage's largest matrix, and make the hashes fit."""
    model = onnx.load(folder / f"{stage}.onnx")
    largest = max(model.graph.initializer, key=lambda one: int(np.prod(one.dims)))
    largest.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(largest), largest.name))
    for old in folder.glob(f"{stage}.*"):
        old.unlink()
    onnx.save(model, folder / f"{stage}.onnx")
    record = json.loads((folder / BUILD_NAME).read_text())
    record["files"] = {name: entry for name, entry in record["files"].items() if (folder / name).exists()}
    (folder / BUILD_NAME).write_text(json.dumps(record))
    relist(folder)


def test_own_engines_open_unchecked_wherever_they_are(own: Path, tmp_path: Path, checks: list[str]) -> None:
    moved = own.rename(tmp_path / "elsewhere")
    assert remark(moved) == "" and checks == []
    assert state(moved) == "ready"
    assert ("origin", "built here") in dict(describe(moved / "engines" / "cpu-fp32"))["engines for cpu, fp32"]


def test_strangers_engines_are_checked_once(stranger: Path, checks: list[str]) -> None:
    assert state(stranger) == "ready, not built here: the first run checks them"
    said = remark(stranger)
    assert said == (
        "engines cpu-fp32 were not built here: they were checked once on the bundle's check vectors, and are "
        "right"
    )
    assert checks == ["semantic_encoder", "pixel_encoder", "sefe", "llm", "pixel_decoder"]
    assert remark(stranger) == "" and len(checks) == 5
    assert re.fullmatch(r"ready, checked here at 20..-.*", state(stranger))


def test_one_stage_of_a_stranger_is_not_opened_before_all_are_checked(
    stranger: Path, checks: list[str]
) -> None:
    """A benchmark's processes open a stage each."""
    with open_llm(Bundle.open(stranger), "cpu", "fp32", 1):
        assert len(checks) == 5
    with open_stage(Bundle.open(stranger), "sefe", "cpu", "fp32", 1):
        assert len(checks) == 5


def test_altered_engines_are_refused_whoever_built_them(own: Path) -> None:
    """The record and a signature stand for hashes: files of the same size must have them, too, in the
    processes of a benchmark, whose bundles are opened by sizes."""
    file = own / "engines" / "cpu-fp32" / "pixel_decoder.onnx"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    for unhashed in (open_own_llm, lambda *given: open_stage(given[0], "pixel_decoder", *given[1:])):
        with pytest.raises(LiraError, match=r"pixel_decoder\.onnx was altered"):
            unhashed(Bundle.open(own, "sizes"), "cpu", "fp32", 1)


def test_changed_weights_with_fitting_hashes_are_refused(own: Path, checks: list[str]) -> None:
    """Also where this user built the engines that were there before."""
    change_weights(own / "engines" / "cpu-fp32")
    command = f"run `lira-edge build {own} --target cpu --precision fp32`"
    for _ in range(2):  # a refusal is not forgotten
        with pytest.raises(LiraError) as caught:
            open_engines(own, threads=1)
        assert re.fullmatch(
            r"the cpu engine of pixel_decoder, which was not built here, is wrong: output mask_logits "
            rf"differs from the recorded one by .*; {re.escape(command)}",
            str(caught.value),
        )
    with pytest.raises(LiraError, match="which was not built here, is wrong"):
        open_engines(own, threads=1, unverified=True)
    build(own, "cpu", "fp32", threads=1)  # does not take them for up to date
    assert remark(own) == ""


def test_a_build_takes_no_strangers_engines_for_ones_own(stranger: Path) -> None:
    """Nor does it leave them: whoever builds wants what no check vectors tell."""
    remark(stranger)
    digest = read_build(stranger / "engines" / "cpu-fp32", "").digest
    build(stranger, "cpu", "fp32", threads=1)
    built = read_build(stranger / "engines" / "cpu-fp32", "")
    assert built.digest != digest and built.known.built and not known_build(digest).built


def test_a_record_that_was_swapped_after_a_build_is_not_recorded(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = own / "engines" / "cpu-fp32" / BUILD_NAME

    def swap(*_: object) -> None:
        record.write_text(record.read_text() + " ")

    monkeypatch.setattr(Durations, "keep", swap)  # called between the two
    build(own, "cpu", "fp32", threads=1, force=True)
    assert not read_build(record.parent, "").known.built


def test_a_check_that_cannot_be_remembered_is_done_again(
    stranger: Path, checks: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    for times in (1, 2):
        assert re.search(r"were checked on .*, and will be each time \(.*file", remark(stranger))
        assert len(checks) == 5 * times


def test_a_check_counts_for_its_check_vectors_only(stranger: Path, tmp_path: Path, checks: list[str]) -> None:
    """A stranger's bundle with check vectors that let anything pass says nothing about one's own bundle."""
    other = Path(shutil.copytree(stranger, tmp_path / "other"))
    with np.load(other / "checks" / "sefe.npz") as vectors:
        arrays = dict(vectors) | {f"noise.{n[4:]}": np.array(1.0) for n in vectors if n.startswith("out.")}
    np.savez(other / "checks" / "sefe.npz", **arrays)
    file, manifest = other / "checks" / "sefe.npz", other / "lira.json"
    content = json.loads(manifest.read_text())
    content["files"]["checks/sefe.npz"] = {"sha256": sha256_of(file), "bytes": file.stat().st_size}
    manifest.write_text(json.dumps(content))
    assert "were checked once" in remark(other) and remark(other) == "" and len(checks) == 5
    verify_engines(other, "cpu", "fp32", threads=1, ask=check_answer)
    assert state(stranger) == "ready, not built here: the first run checks them"
    assert "were checked once" in remark(stranger) and len(checks) == 10


def test_verifying_counts_as_a_check(stranger: Path, checks: list[str]) -> None:
    verify_engines(stranger, "cpu", "fp32", threads=1, ask=check_answer)
    assert remark(stranger) == "" and checks == []
    assert state(stranger).startswith("ready, verified here at 20")


def test_a_failed_verification_ends_what_a_check_found(
    stranger: Path, checks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    remark(stranger)

    def refuse(*_: object) -> None:
        raise LiraError("the answer is wrong")

    with pytest.raises(LiraError, match="the answer is wrong"):
        verify_engines(stranger, "cpu", "fp32", threads=1, ask=refuse)  # type: ignore[arg-type]
    assert "were checked once" in remark(stranger) and len(checks) == 10


def test_a_record_cannot_say_that_it_is_trusted(stranger: Path) -> None:
    record = stranger / "engines" / "cpu-fp32" / BUILD_NAME
    content = json.loads(record.read_text())
    for name, value in (("known", {"built": "then"}), ("verified", None), ("digest", "")):
        record.write_text(json.dumps(content | {name: value}))
        with pytest.raises(LiraError, match=rf"unknown key '{name}'; run `lira-edge build"):
            open_engines(stranger, threads=1)


@pytest.fixture
def plans(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stranger's engines that are code. Opening one would be the mistake."""
    monkeypatch.setattr(ort_target.CpuTarget, "engines_are_code", True)
    opened: list[object] = []
    monkeypatch.setattr(ort_target.CpuTarget, "opener", lambda *_: opened.append(1))
    yield stranger  # type: ignore[misc]
    assert not opened


def test_a_strangers_code_is_refused_by_all_that_would_load_it(plans: Path) -> None:
    command = re.escape(f"run `lira-edge build {plans} --target cpu --precision fp32`")
    trust = re.escape(f"`lira-edge verify {plans / 'engines/cpu-fp32'} --signature --key PUBLIC_KEY --trust`")
    said = (
        rf"the cpu-fp32 engines were not built here \(nothing in {re.escape(str(data_folder()))} says so\), "
        rf"and they are code: {command}, or trust who signed them: {trust}"
    )
    bundle = Bundle.open(plans)
    loads: list[Callable[[], object]] = [
        lambda: open_engines(plans, threads=1),
        lambda: open_engines(plans, threads=1, unverified=True),
        lambda: open_llm(bundle, "cpu", "fp32", 1),
        lambda: open_stage(bundle, "sefe", "cpu", "fp32", 1),
        lambda: verify_engines(plans, "cpu", "fp32", threads=1, ask=check_answer),
        lambda: bisect.find_wrong_node(plans, "cpu", "fp32", 1),
    ]
    for load in loads:
        with pytest.raises(LiraError, match=f"^{said}$"):
            load()
    assert re.fullmatch(f"built, but {said}", state(plans))


def test_engines_of_tensorrt_are_code() -> None:
    code = {name for name, target in TARGETS.items() if target.engines_are_code}
    assert code == {"tensorrt", "tensorrt-rtx"}


def test_a_verification_does_not_make_code_ones_own(plans: Path) -> None:
    """It could only have been loaded while a key was trusted that no longer is."""
    from lira_engine.trust.known_builds import keep_known

    folder = plans / "engines" / "cpu-fp32"
    found = Verified("then", Setting("a processor", "", "a runtime"), {}, tokens=1, agree=1)
    keep_known(read_build(folder, "").digest, checked="then", verified=schema.write(found), signed="0" * 64)
    assert read_build(folder, "").verified == found
    with pytest.raises(LiraError, match="and they are code"):
        open_engines(plans, threads=1)


def test_engines_that_no_tolerance_judges_are_refused(stranger: Path) -> None:
    """With a recipe, outputs must only be finite: that would say nothing about a stranger's."""
    folder = stranger / "engines" / "cpu-fp32"
    record = json.loads((folder / BUILD_NAME).read_text())
    record |= {"precision": "mixed", "recipe": "0" * 64}
    record["precisions"] = {**record["precisions"], "llm": "mixed"}
    record["options"] = target_named("cpu").recorded_options(CpuOptions(), "mixed")
    (folder / BUILD_NAME).write_text(json.dumps(record))
    folder.rename(folder.with_name("cpu-mixed"))
    with pytest.raises(
        LiraError, match=r"no check vectors tell whether they are right: run `.* --recipe RECIPE"
    ):
        open_engines(stranger, "cpu", "mixed", threads=1)
    remember_built(read_build(folder.with_name("cpu-mixed"), ""))
    assert remark(stranger, precision="mixed") == ""


def test_cuda_engines_of_a_stranger(nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any engines for a GPU they do not run before they are verified; --unverified checks them first."""
    from lira_engine.engines import setting
    from lira_engine.system.machine import Gpu

    monkeypatch.setattr(ort_target, "cuda_device", lambda precision, provider, allow: CPU)
    monkeypatch.setattr(setting, "gpus", lambda: [Gpu("RTX 4090", "24564 MiB", "580.1", "8.9")])
    monkeypatch.setattr(setting, "jetson", lambda: None)
    bundle = Path(shutil.copytree(nano, tmp_path / "nano"))
    build(bundle, "cuda", "fp16", threads=1)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with pytest.raises(LiraError, match="were not verified on a device"):
        open_engines(bundle, "cuda", "fp16", threads=1)
    assert "were not built here: they were checked once" in remark(bundle, "cuda", "fp16", unverified=True)
    with pytest.raises(LiraError, match="were not verified on a device"):
        open_engines(bundle, "cuda", "fp16", threads=1)
    verify_engines(bundle, "cuda", "fp16", threads=1, ask=check_answer)
    assert remark(bundle, "cuda", "fp16") == ""


def test_a_build_that_cannot_be_recorded_says_so(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lira_engine.main import main

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    with pytest.raises(SystemExit) as caught:
        main(["build", str(own), "--threads", "1"])
    assert caught.value.code == 0
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("warning")]
    assert re.fullmatch(
        r"warning: it cannot be recorded that this user built them \(.*file.*\): run checks the engines each "
        "time, and refuses those that are code",
        line,
    )
