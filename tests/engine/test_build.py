"""A build keeps right engines or nothing, and opening refuses stale, altered and foreign ones."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine import Bundle, LiraError, open_engines
from lira_engine.build import build
from lira_engine.bundle.graphs import external_locations
from lira_engine.bundle.integrity import sha256_of
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.accuracy import relative_error
from lira_engine.engines.fingerprint import lowering_fingerprint
from lira_engine.engines.llm_tensors import lengths
from lira_engine.engines.usable import usable_build
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.pipeline import Pass
from lira_engine.lowering.prefill import LayerGroup, save_prefill
from lira_engine.lowering.quantization import Quantization
from lira_engine.ort import kv_cache
from lira_engine.ort.options import CpuOptions, CudaOptions
from lira_engine.targets import target_named
from lira_engine.verify import CheckedAnswer, verify_engines

CUDA_OPTIONS = CudaOptions().recorded("float")


@pytest.fixture(scope="module")
def made_engines(made_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with its engines that `built` copies."""
    root = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(made_bundle, root)
    build(root, threads=1)
    return root


@pytest.fixture
def built(made_engines: Path, tmp_path: Path) -> Path:
    """A bundle with engines that a test may change."""
    shutil.copytree(made_engines, tmp_path / "built")
    return tmp_path / "built"


def test_a_build_writes_every_stage_and_its_record(bundle_path: Path) -> None:
    said: list[tuple[str, str]] = []
    folder = build(bundle_path, threads=1, progress=lambda stage, phase: said.append((stage, phase)))
    assert folder == bundle_path / "engines" / "cpu-fp32"
    assert said == [(stage, phase) for stage in STAGES for phase in ("lower", "write", "check", "done")]
    record = json.loads((folder / "build.json").read_text())
    assert set(record["files"]) == {path.name for path in folder.iterdir()} - {"build.json"}
    assert record["sources"]["llm.onnx.data"] == sha256_of(bundle_path / "llm.onnx.data")
    assert record["tools"]["onnx"] and record["machine"]["arch"]
    assert set(record["errors"]) == set(STAGES) and {"logits", "hidden_states"} < set(record["errors"]["llm"])
    assert all(error <= 1e-4 for errors in record["errors"].values() for error in errors.values())
    assert not [name for name in os.listdir(folder.parent) if name.startswith(".")]


def test_engines_load_in_onnxruntime_1_20(built: Path) -> None:
    for stage in STAGES:
        path = built / "engines" / "cpu-fp32" / f"{stage}.onnx"
        model = ir.load(path)
        assert model.opset_imports[""] <= 21 and model.ir_version <= 10
        assert set(model.opset_imports) <= {"", "com.microsoft"} and not model.functions
        assert external_locations(path) <= {f"{stage}.onnx.data"}


@pytest.mark.portable
def test_opened_engines_match_the_portable_graphs(built: Path) -> None:
    bundle = Bundle.open(built)
    with open_engines(bundle, threads=1) as engines, open_engines(bundle, "portable", threads=1) as portable:
        assert (engines.target, portable.target) == ("cpu", "portable")
        for stage in ("semantic_encoder", "pixel_encoder", "sefe", "pixel_decoder"):
            feeds = bundle.check_vectors(stage).inputs
            found, expected = getattr(engines, stage).run(feeds), getattr(portable, stage).run(feeds)
            for name, array in expected.items():
                np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6)
        embeds = bundle.embeddings[[3, 1, 4, 1, 5]]
        assert engines.llm.capacity == portable.llm.capacity == bundle.manifest.model.context_length
        answers = []
        for llm in (engines.llm, portable.llm):
            cache = llm.new_cache()
            llm.forward(embeds[:3], cache)
            answers.append(llm.forward(embeds[3:], cache, (0, -1)))
            assert cache.length == 5
        np.testing.assert_allclose(answers[0].logits, answers[1].logits, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(answers[0].hidden, answers[1].hidden, rtol=1e-5, atol=1e-5)


def test_a_build_does_nothing_if_engines_are_up_to_date(bundle_path: Path) -> None:
    said: list[str] = []
    folder = build(bundle_path, threads=1)
    build(bundle_path, threads=1, progress=lambda stage, phase: said.append(stage))
    assert said == []
    build(bundle_path, threads=1, force=True, progress=lambda stage, phase: said.append(stage))
    assert said
    for spoil in (
        lambda: (folder / "sefe.onnx").write_bytes(b"x"),
        lambda: (folder / "build.json").unlink(),
    ):
        spoil()
        build(bundle_path, threads=1)
        usable_build(Bundle.open(bundle_path), target_named("cpu"), "fp32")


def test_options_of_another_target_are_refused(bundle_path: Path) -> None:
    with pytest.raises(LiraError, match="target cpu takes options of class CpuOptions, got CudaOptions"):
        build(bundle_path, "cpu", options=CudaOptions())


def test_engines_that_change_while_they_are_verified_stay_unverified(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lira_engine.verify.stage_runs", lambda *_: iter(()))
    record = built / "engines" / "cpu-fp32" / "build.json"

    def ask(*_: object) -> CheckedAnswer:
        record.write_text(json.dumps(json.loads(record.read_text()) | {"said": ["built again"]}))
        return CheckedAnswer(0)

    with pytest.raises(LiraError, match="was built again meanwhile: run `lira-edge verify` again"):
        verify_engines(built, "cpu", "fp32", 1, ask=ask)
    assert json.loads(record.read_text()).get("verified") is None


def edit_record(key: str, value: Any) -> Callable[[Path], None]:
    """Return a change that sets KEY.KEY... of build.json."""

    def edit(built: Path) -> None:
        file = built / "engines" / "cpu-fp32" / "build.json"
        data = json.loads(file.read_text())
        *parents, last = key.split(".")
        place = data
        for parent in parents:
            place = place[parent]
        place[last] = value
        file.write_text(json.dumps(data))

    return edit


def drop(key: str) -> Callable[[Path], None]:
    """Return a change that removes KEY or SECTION.KEY from build.json."""

    def edit(built: Path) -> None:
        file = built / "engines" / "cpu-fp32" / "build.json"
        data = json.loads(file.read_text())
        section, _, last = key.partition(".")
        place, last = (data[section], last) if last else (data, section)
        del place[last]
        file.write_text(json.dumps(data))

    return edit


def replace_source(built: Path) -> None:
    """Change a portable graph, like a new export into a bundle whose engines were kept by hand."""
    file = built / "semantic_encoder.onnx"
    file.write_bytes(file.read_bytes() + b"\x32\x00")  # an empty doc string
    relist(built, file.name)


def relist(bundle: Path, name: str) -> None:
    """List a changed file's new hash and size in lira.json."""
    listed = json.loads((bundle / "lira.json").read_text())
    listed["files"][name] = {"sha256": sha256_of(bundle / name), "bytes": (bundle / name).stat().st_size}
    (bundle / "lira.json").write_text(json.dumps(listed))


def alter(built: Path) -> None:
    file = built / "engines" / "cpu-fp32" / "sefe.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")


def remove(name: str) -> Callable[[Path], None]:
    return lambda built: (built / "engines" / "cpu-fp32" / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (
            replace_source,
            r"is stale: it was built from semantic_encoder\.onnx [0-9a-f]{12}, which is now [0-9a-f]{12}",
        ),
        (
            edit_record("sources.gone", "0" * 64),
            "it was built from gone 000000000000, which is no longer there",
        ),
        (edit_record("target", "cuda"), "holds engines for cuda-fp32, expected cpu-fp32"),
        (edit_record("lira_edge_version", "0.0.1"), r"was built by lira-edge 0\.0\.1, this is"),
        (
            edit_record("lowering", "0" * 12),
            r"is stale: it was built by lowering code 0{12}, this is [0-9a-f]{12}",
        ),
        (edit_record("sources", {}), r"build\.json lists no source semantic_encoder\.onnx"),
        (drop("sources.llm.onnx.data"), r"build\.json lists no source llm\.onnx\.data"),
        (
            edit_record("precisions", {}),
            "precision of semantic_encoder is None, expected fp32",
        ),
        (edit_record("precisions.sefe", "fp17"), "precision of sefe is 'fp17', expected fp32"),
        (edit_record("seconds", 3), r"build\.json\.seconds: found 3, expected an object"),
        (drop("lowering"), "key 'lowering' is missing"),
        (edit_record("more", 1), "unknown key 'more'"),
        (edit_record("format_version", 1), "has format version 1, expected 2"),
        (edit_record("format", "x"), "is not the record of a build"),
        (edit_record("files", {}), r"lists no semantic_encoder\.onnx"),
        (alter, r"sefe\.onnx was altered"),
        (remove("sefe.onnx"), r"sefe\.onnx is missing"),
        (remove("build.json"), "holds no engines"),
    ],
)
def test_stale_altered_and_foreign_engines_are_refused(
    built: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(built)
    command = rf"run `lira-edge build {built} --target cpu --precision fp32`"
    with pytest.raises(LiraError, match=f"{reason}.*{command}"):
        open_engines(built, threads=1)


@pytest.mark.parametrize(
    "options, reason",
    [
        ({}, "lacks option provider"),
        ({"provider": "cuda"}, "lacks option allow_fallback"),
        (CUDA_OPTIONS | {"provider": "rocm"}, "provider 'rocm': expected cuda"),
        (CUDA_OPTIONS | {"allow_fallback": 1}, "allow fallback 1: expected true or false"),
        (CUDA_OPTIONS | {"provider": {}}, "provider {}: expected text"),
    ],
)
def test_a_record_without_its_options_is_refused(built: Path, options: dict[str, Any], reason: str) -> None:
    folder = shutil.copytree(built / "engines" / "cpu-fp32", built / "engines" / "cuda-fp32")
    file = folder / "build.json"
    code = lowering_fingerprint(target_named("cuda").sources)
    record = json.loads(file.read_text()) | {"target": "cuda", "lowering": code, "options": options}
    file.write_text(json.dumps(record))
    with pytest.raises(LiraError, match=f"build.json: {reason}.*run `lira-edge build {built}"):
        open_engines(built, "cuda", "fp32")
    file.write_text(json.dumps(record | {"options": CUDA_OPTIONS}))
    usable_build(Bundle.open(built), target_named("cuda"), "fp32")


@pytest.mark.parametrize("folder, mend", [("cpu-fp32", "lira-edge build"), ("built", "lira-edge export")])
def test_an_unreadable_file_is_an_error_of_one_line(
    built: Path, folder: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(path: Path) -> str:
        if path.name == "sefe.onnx" and path.parent.name == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return sha256_of(path)

    monkeypatch.setattr("lira_engine.bundle.integrity.sha256_of", refusing)
    with pytest.raises(LiraError, match=rf"sefe\.onnx cannot be read \(Permission denied\).*{mend}"):
        open_engines(built)


def test_a_graphs_external_data_is_cached(
    built: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that only runs engines neither parses graphs again nor imports onnx."""
    usable_build(Bundle.open(built), target_named("cpu"), "fp32")

    def fail(path: Path) -> set[str]:
        raise AssertionError(f"{path} was parsed again")

    monkeypatch.setattr("lira_engine.bundle.graphs.external_locations", fail)
    usable_build(Bundle.open(built), target_named("cpu"), "fp32")


def test_an_unknown_target_or_precision_lists_the_choices(bundle_path: Path) -> None:
    for act in (build, open_engines):
        with pytest.raises(LiraError, match=r"there is no target 'tpu'; expected cpu, .*, or portable to"):
            act(bundle_path, "tpu")
        with pytest.raises(LiraError, match="target cpu has no precision 'int3'; expected fp32"):
            act(bundle_path, "cpu", "int3")
    with pytest.raises(LiraError, match=r"target portable runs .*: nothing is built or verified"):
        build(bundle_path, "portable")
    with pytest.raises(LiraError, match="portable graphs have precision fp32"):
        open_engines(bundle_path, "portable", "int4")


def test_files_that_no_build_wrote_are_not_replaced(bundle_path: Path) -> None:
    folder = bundle_path / "engines" / "cpu-fp32"
    folder.mkdir(parents=True)
    (folder / "llm.onnx").write_text("left by a stopped build")
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(LiraError, match=r"cpu-fp32 holds notes\.txt, which no build wrote: move it away"):
        build(bundle_path)
    (folder / "notes.txt").unlink()
    build(bundle_path)


class Spoil(ir.passes.InPlacePass):
    """A slightly wrong pass: it scales one weight matrix by 1.01."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for value in model.graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
                value.const_value = ir.tensor(value.const_value.numpy() * np.float32(1.01), name=value.name)
                return ir.passes.PassResult(model, True)
        raise AssertionError("no weight found")


@pytest.mark.parametrize("stage", STAGES)
def test_a_wrong_engine_is_not_kept(bundle_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(lowered: str, precision: str, quantization: Quantization) -> Sequence[Pass]:
        passes = cpu_pipeline(lowered, precision, quantization)
        return [*passes, Spoil()] if lowered == stage else passes

    monkeypatch.setattr("lira_engine.ort.build_cpu.cpu_pipeline", spoiled)
    reason = f"the cpu engine of {stage} is wrong: output .* differs .* of the largest value, at most 1e-04"
    with pytest.raises(LiraError, match=reason):
        build(bundle_path, threads=1)
    assert os.listdir(bundle_path / "engines") == []


@pytest.mark.parametrize("noise, accepted", [(2e-4, True), (2e-5, False)])
def test_the_tolerance_follows_the_noise_of_the_reference(
    bundle_path: Path, noise: float, accepted: bool
) -> None:
    """An error of 1e-3 passes only if the reference's own noise is a tenth of it or more."""
    file = bundle_path / "checks" / "sefe.npz"
    with np.load(file) as recorded:
        arrays = dict(recorded)
    name = next(key for key in arrays if key.startswith("out."))
    expected = arrays[name]
    expected.flat[0] += 1e-3 * np.abs(expected).max()
    np.savez(file, **arrays, **{f"noise.{name[4:]}": np.array(noise)})
    relist(bundle_path, "checks/sefe.npz")
    if accepted:
        build(bundle_path, threads=1)
    else:
        with pytest.raises(LiraError, match="the cpu engine of sefe is wrong"):
            build(bundle_path, threads=1)


@pytest.fixture
def from_empty_cache(bundle_path: Path) -> Path:
    """A bundle whose check vectors of the language model begin with an empty cache, which they lack."""
    file = bundle_path / "checks" / "llm.npz"
    with np.load(file) as recorded:
        embeds = recorded["in.inputs_embeds"]
    asked = np.array([0, 2])
    with open_engines(bundle_path, "portable", threads=1) as engines:
        answer = engines.llm.forward(embeds[0], engines.llm.new_cache(), asked.tolist())
    tensors = {"inputs_embeds": embeds, "position": np.zeros(1, np.int64), "logit_positions": asked}
    outputs = {"logits": answer.logits[None], "hidden_states": answer.hidden[None]}
    np.savez(
        file, **{f"in.{k}": v for k, v in tensors.items()}, **{f"out.{k}": v for k, v in outputs.items()}
    )
    relist(bundle_path, "checks/llm.npz")
    return bundle_path


@pytest.mark.portable
def test_a_build_checks_the_runners_kv_cache(from_empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build(from_empty_cache, threads=1)
    record = json.loads((folder / "build.json").read_text())
    assert set(record["errors"]["llm"]) == {"logits", "hidden_states"}

    monkeypatch.setattr(kv_cache, "lengths", lambda position, rows: lengths(0, rows))
    with pytest.raises(LiraError, match="the cpu engine of llm is wrong: output"):
        build(from_empty_cache, threads=1, force=True)
    usable_build(Bundle.open(from_empty_cache), target_named("cpu"), "fp32")  # the earlier engines are kept


@pytest.mark.portable
def test_a_build_checks_the_graphs_for_many_rows(
    from_empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantized engines have them, if nobody asked for the same weights."""
    folder = build(from_empty_cache, precision="int8", threads=1)
    written = {path.name for path in folder.glob("llm.prefill.*")}
    assert {"llm.prefill.0.onnx", "llm.prefill.0.data"} <= written
    assert written <= set(json.loads((folder / "build.json").read_text())["files"])

    def spoiled(groups: list[LayerGroup], made: Path) -> None:
        save_prefill(groups, made)
        for data in made.glob("llm.prefill.*.data"):
            data.write_bytes(data.read_bytes()[::-1])

    monkeypatch.setattr("lira_engine.ort.build_cpu.save_prefill", spoiled)
    with pytest.raises(LiraError, match=r"the cpu engine of llm is wrong: output|is not finite"):
        build(from_empty_cache, precision="int8", threads=1, force=True)
    folder = build(from_empty_cache, precision="int8", threads=1, options=CpuOptions(prefill="same"))
    assert not list(folder.glob("llm.prefill.*"))


def test_an_int8_kv_cache_of_other_heads_is_refused(bundle_path: Path) -> None:
    with pytest.raises(LiraError, match=r"heads have 4 columns, .* 16; leave out --kv-cache int8"):
        build(bundle_path, precision="int4", options=CpuOptions(kv_cache="int8"), threads=1)


def test_too_little_disk_is_refused(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 0))
    with pytest.raises(LiraError, match="has 0 MiB of disk left, the build needs about"):
        build(bundle_path)


def test_relative_error_is_a_share_of_the_largest_value_or_infinite() -> None:
    a = np.array([1.0, -4.0, np.inf], np.float32)
    assert relative_error(a, a) == 0
    assert relative_error(np.array([1.0, -4.4, np.inf], np.float32), a) == pytest.approx(0.1, rel=1e-5)
    infinite = float("inf")
    assert relative_error(np.array([1.0, np.nan, np.inf], np.float32), a) == infinite
    assert relative_error(np.array([1.0, -4.0, 0.0], np.float32), a) == infinite
    assert relative_error(a.astype(np.float64), a) == infinite
    assert relative_error(a[:2], a) == infinite
    flags = np.array([True, False])
    assert relative_error(flags, flags) == 0 and relative_error(~flags, flags) == infinite
    assert relative_error(np.zeros(2, np.float32), np.zeros(2, np.float32)) == 0
