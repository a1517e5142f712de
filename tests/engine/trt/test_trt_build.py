"""Builds for TensorRT: what an engine depends on, and which engines are refused. With a stand-in for
TensorRT's compiler (the real one: test_real_compiler.py)."""

from __future__ import annotations

import dataclasses
import enum
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine import Bundle, LiraError
from lira_engine import build as building
from lira_engine.build import build
from lira_engine.bundle.graphs import read_graph
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines import lowered_outputs
from lira_engine.engines.judgement import Candidate, Judgement
from lira_engine.engines.recipe import Form, Recipe, StageRecipe, read_recipe, sources_of, write_recipe
from lira_engine.engines.record import read_build
from lira_engine.engines.usable import usable_build
from lira_engine.lowering import cpu, cuda, tensorrt
from lira_engine.lowering.passes.sample_by_plugin import PLUGIN
from lira_engine.main import main
from lira_engine.system.machine import Gpu, Jetson
from lira_engine.targets import target_named
from lira_engine.trt import build as trt_build
from lira_engine.trt import target as trt_target
from lira_engine.trt.compile import Job
from lira_engine.trt.flavour import Flavour, dialect_of
from lira_engine.trt.options import RtxOptions
from lira_export.config import LlmConfig

VERSIONS = {"tensorrt": (10, 3, 0), "tensorrt-rtx": (1, 7, 1)}


def flavour(target: str) -> Flavour:
    module = ModuleType("fake")
    names = ("NONE", "CURRENT", "SM75", "SM80", "SM86", "SM89", "SM120")
    module.ComputeCapability = enum.Enum("ComputeCapability", names)  # type: ignore[attr-defined]
    return Flavour(target, module, VERSIONS[target], dialect_of(target, VERSIONS[target]))


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Job]:
    """The compiler's jobs. Its engines are the graphs' bytes."""
    asked: list[Job] = []

    def compile_in_process(job: Job, phase: Callable[[str], None]) -> dict[str, int]:
        asked.append(job)
        phase("build")
        Path(job.out).write_bytes(Path(job.graph).read_bytes())
        return {"peak_rss_mib": 123, "layers": 1}

    monkeypatch.setattr(trt_build, "compile_in_process", compile_in_process)
    monkeypatch.setattr(trt_target, "load_flavour", flavour)
    monkeypatch.setattr(trt_target, "gpus", lambda: [Gpu("Orin", "7620 MiB", "540.4")])
    monkeypatch.setattr(trt_target, "jetson", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return asked


@pytest.mark.parametrize("target", VERSIONS)
def test_every_stage_is_lowered_compiled_and_recorded(
    bundle_path: Path, jobs: list[Job], target: str
) -> None:
    said: list[tuple[str, str]] = []
    folder = build(bundle_path, target, "fp16", progress=lambda stage, phase: said.append((stage, phase)))
    assert said == [(stage, phase) for stage in STAGES for phase in ("lower", "write", "build", "done")]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["build.json", *(f"{stage}.engine" for stage in STAGES)]
    )
    record = read_build(folder, "")
    assert record.precisions == dict.fromkeys(STAGES, "fp16")
    assert record.peaks_mib == dict.fromkeys(STAGES, 123) and not any(record.errors.values())
    assert record.tools == {target: ".".join(map(str, VERSIONS[target]))}
    assert record.options["dialect"] == ("decomposed" if target == "tensorrt" else "cache_update")
    assert record.machine.get("gpu") == ("Orin" if target == "tensorrt" else None)
    assert [job.target for job in jobs] == [target] * 5
    llm_profiles = 2 if target == "tensorrt" else 1  # int4: below
    assert [len(job.profiles) for job in jobs] == [llm_profiles if stage == "llm" else 1 for stage in STAGES]
    assert {job.workspace for job in jobs} == {None}
    assert all((job.timing_cache is not None) == (target == "tensorrt") for job in jobs)
    usable_build(Bundle.open(bundle_path), target_named(target), "fp16")


def test_an_int4_language_model_keeps_its_cache_in_fp16(
    nano_bundle: Path, jobs: list[Job], tmp_path: Path
) -> None:
    root = shutil.copytree(nano_bundle, tmp_path / "nano")
    folder = build(root, "tensorrt-rtx", "int4")
    assert [len(job.profiles) for job in jobs] == [2 if stage == "llm" else 1 for stage in STAGES]
    graph = ir.load(folder / "llm.engine").graph
    kinds = {value.name: value.dtype for value in (*graph.inputs, *graph.outputs)}
    assert kinds["key_cache.0"] == kinds["value_cache_out.0"] == ir.DataType.FLOAT16
    assert kinds["inputs_embeds"] == kinds["logits"] == ir.DataType.FLOAT


def test_a_second_build_does_nothing_and_other_options_build_again(
    bundle_path: Path, jobs: list[Job]
) -> None:
    build(bundle_path, "tensorrt-rtx", "fp16")
    build(bundle_path, "tensorrt-rtx", "fp16")
    assert len(jobs) == 5
    options = RtxOptions(compute_capabilities=("8.6", "12.0"))
    build(bundle_path, "tensorrt-rtx", "fp16", options)
    assert len(jobs) == 10 and jobs[-1].compute_capabilities == ["8.6", "12.0"]
    same = RtxOptions(compute_capabilities=("12.0", "8.6", "12.0"))
    build(bundle_path, "tensorrt-rtx", "fp16", same)
    assert len(jobs) == 10


def test_a_build_says_how_long_the_last_one_took(bundle_path: Path, jobs: list[Job]) -> None:
    said: list[str] = []
    build(bundle_path, "tensorrt-rtx", "fp16")
    build(bundle_path, "tensorrt-rtx", "fp16", force=True, progress=lambda stage, phase: said.append(phase))
    assert said[2].startswith("build, ") and said[2].endswith(" s last time")


def test_engines_of_another_version_or_gpu_are_refused(
    bundle_path: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build(bundle_path, "tensorrt", "fp16")
    bundle = Bundle.open(bundle_path)
    mend = f"run `lira-edge build {bundle_path} --target tensorrt --precision fp16`"
    with monkeypatch.context() as patched:
        patched.setattr(
            trt_target, "load_flavour", lambda target: dataclasses.replace(flavour(target), version=(10, 15))
        )
        with pytest.raises(LiraError, match=rf"was built with tensorrt 10\.3\.0, this is 10\.15; {mend}"):
            usable_build(bundle, target_named("tensorrt"), "fp16")
    with monkeypatch.context() as patched:
        patched.setattr(trt_target, "gpus", lambda: [Gpu("AGX", "1 MiB", "1")])
        with pytest.raises(LiraError, match=f"was built for gpu Orin, this is AGX; {mend}"):
            usable_build(bundle, target_named("tensorrt"), "fp16")
    with monkeypatch.context() as patched:
        patched.setattr("platform.machine", lambda: "aarch64")
        with pytest.raises(LiraError, match=f"was built for arch .*, this is aarch64; {mend}"):
            usable_build(bundle, target_named("tensorrt"), "fp16")
    (folder / "sefe.engine").write_bytes((folder / "sefe.engine").read_bytes()[:-1] + b"\x01")
    with pytest.raises(LiraError, match=f"sefe.engine was altered.*{mend}"):
        usable_build(bundle, target_named("tensorrt"), "fp16")


def test_a_record_without_gpu_or_version_is_refused(bundle_path: Path, jobs: list[Job]) -> None:
    options = target_named("tensorrt").given_options({"lm_head_parts": 2}, "int4")
    file = build(bundle_path, "tensorrt", "fp16", options) / "build.json"
    text = file.read_text()
    mend = f"run `lira-edge build {bundle_path} --target tensorrt --precision fp16 --lm-head-parts 2`"
    for key, name, reason in (
        ("machine", "gpu", "was built for gpu None, this is Orin"),
        ("tools", "tensorrt", r"was built with tensorrt None, this is 10\.3\.0"),
    ):
        record = json.loads(text)
        del record[key][name]
        file.write_text(json.dumps(record))
        with pytest.raises(LiraError, match=f"{reason}; {mend}"):
            usable_build(Bundle.open(bundle_path), target_named("tensorrt"), "fp16")


def test_engines_of_another_board_are_refused(
    bundle_path: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """nvidia-smi gives the GPUs of all boards one name. Boards do not share kernel timings."""
    board = Jetson("NVIDIA Jetson Orin Nano Developer Kit (p3768-0000+p3767-0005)", "36.4.3", "6.2")
    monkeypatch.setattr(trt_target, "jetson", lambda: board)
    record = read_build(build(bundle_path, "tensorrt", "fp16"), "")
    assert record.machine["gpu"] == board.model and record.machine["l4t"] == "36.4.3"
    bundle = Bundle.open(bundle_path)
    usable_build(bundle, target_named("tensorrt"), "fp16")
    caches = {jobs[-1].timing_cache}
    assert {job.workspace for job in jobs} == {1 << 30}  # of the memory that CPU and GPU share
    other = dataclasses.replace(board, model="NVIDIA Jetson AGX Orin Developer Kit (p3737-0000+p3701-0005)")
    for here, reason in (
        (other, r"gpu .*Orin Nano.*, this is .*AGX Orin"),
        (dataclasses.replace(other, l4t="36.4.4"), r"l4t 36\.4\.3, this is 36\.4\.4"),
    ):
        monkeypatch.setattr(trt_target, "jetson", lambda here=here: here)
        with pytest.raises(LiraError, match=rf"was built for {reason}.*; run `lira-edge build"):
            usable_build(bundle, target_named("tensorrt"), "fp16")
        build(bundle_path, "tensorrt", "fp16")
        caches.add(jobs[-1].timing_cache)
    assert len(jobs) == 15 and len(caches) == 3


def test_engines_for_rtx_move_between_windows_and_linux(
    bundle_path: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for target in VERSIONS:
        build(bundle_path, target, "fp16")
    monkeypatch.setattr("platform.system", lambda: "Windows")
    monkeypatch.setattr("platform.machine", lambda: "AMD64")
    bundle = Bundle.open(bundle_path)
    usable_build(bundle, target_named("tensorrt-rtx"), "fp16")
    with pytest.raises(LiraError, match=r"was built for system .*, this is Windows"):
        usable_build(bundle, target_named("tensorrt"), "fp16")
    monkeypatch.setattr("platform.machine", lambda: "ARM64")
    with pytest.raises(LiraError, match="was built for arch x86_64, this is ARM64"):
        usable_build(bundle, target_named("tensorrt-rtx"), "fp16")


@pytest.mark.parametrize(
    "option, edited, reason",
    [
        *(
            ("compute_capabilities", edited, "compute capabilities .*: expected a list")
            for edited in (None, 8.9, [8.9])
        ),
        ("compute_capabilities", ["x"], "compute capability 'x': expected one such as"),
        ("lm_head_parts", 0, "LM head in 0 parts: expected 1 to 64"),
        ("dialect", "decomposed", "option dialect is 'decomposed', expected cache_update"),
    ],
)
def test_edited_options_are_refused(
    bundle_path: Path, jobs: list[Job], option: str, edited: object, reason: str
) -> None:
    folder = build(bundle_path, "tensorrt-rtx", "fp16")
    record = json.loads((folder / "build.json").read_text())
    record["options"][option] = edited
    (folder / "build.json").write_text(json.dumps(record))
    with pytest.raises(LiraError, match=rf"build.json: {reason}.*; run `lira-edge build"):
        usable_build(Bundle.open(bundle_path), target_named("tensorrt-rtx"), "fp16")


def test_too_little_memory_is_refused_with_the_figures(
    bundle_path: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trt_build, "available_mib", lambda: 700)
    with pytest.raises(
        LiraError, match=r"semantic_encoder needs about 1,0\d\d MiB of memory .* 700 MiB are free"
    ):
        build(bundle_path, "tensorrt-rtx", "fp16")
    assert not jobs and list((bundle_path / "engines").iterdir()) == []


def test_the_memory_of_a_compilation_grows_with_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_build, "available_mib", lambda: 8000)
    trt_build.check_memory("llm", 1 << 30)
    with pytest.raises(LiraError) as caught:
        trt_build.check_memory("llm", 2 << 30)
    assert str(caught.value) == (
        "llm needs about 9,216 MiB of memory to compile, 8,000 MiB are free, swap included: close other "
        "programs, add swap, or take int4 or a larger --lm-head-parts; nothing was kept"
    )


def test_each_bad_option_is_a_one_line_error(bundle_path: Path, jobs: list[Job]) -> None:
    for target, given, reason in (
        ("cpu", {"lm_head_parts": 2}, "target cpu has no option lm head parts"),
        ("tensorrt", {"encoders": "int8"}, "target tensorrt has no option encoders"),
        ("tensorrt", {"block_size": 48}, "block size 48: expected 64 or 128"),
        ("tensorrt", {"lm_head_bits": 8}, "lm head bits 8: expected 4 or 16"),
        ("tensorrt", {"sampling": "grid"}, "sampling 'grid': expected gathers or plugin"),
        ("tensorrt-rtx", {"lm_head_parts": 0}, "LM head in 0 parts: expected 1 to 64"),
        ("tensorrt-rtx", {"lm_head_parts": 100000}, "LM head in 100000 parts: expected 1 to 64"),
        *(
            (
                "tensorrt-rtx",
                {"compute_capabilities": (text,)},
                rf"compute capability '{text}': expected one such as 8\.9",
            )
            for text in ("89", "8.90", "", " 8.9", "x.y")
        ),
    ):
        with pytest.raises(LiraError, match=reason):
            target_named(target).given_options(given, "int4")
    with pytest.raises(LiraError, match="target tensorrt takes options of class TensorRtOptions, got RtxO"):
        build(bundle_path, "tensorrt", "fp16", RtxOptions(compute_capabilities=("8.9",)))


@pytest.mark.parametrize(
    "precision, given, reason",
    [
        ("fp16", {"lm_head_parts": 21}, "LM head in 21 parts: expected at most 20, a row each"),
        (
            "fp16",
            {"compute_capabilities": ("8.9", "9.9")},
            r"compute capability 9\.9 is not one that tensorrt-rtx 1\.7\.1 builds for: 7\.5, 8\.0, .* 12\.0",
        ),
        *(
            (
                precision,
                {"compute_capabilities": ("7.5", "8.9")},
                rf"compute capability 7\.5 has no {precision} matmuls .*, expected 8\.0 or newer: take",
            )
            for precision in ("int4", "fp32")
        ),
    ],
)
def test_what_cannot_be_built_is_refused_before_the_first_stage(
    bundle_path: Path, jobs: list[Job], precision: str, given: dict[str, Any], reason: str
) -> None:
    said: list[str] = []
    with pytest.raises(LiraError, match=reason):
        build(
            bundle_path,
            "tensorrt-rtx",
            precision,
            target_named("tensorrt-rtx").given_options(given, "int4"),
            progress=lambda stage, phase: said.append(stage),
        )
    assert not said and not (bundle_path / "engines").exists()


@pytest.mark.parametrize("version, plugin", [((10, 3, 0), "1"), ((10, 11, 0), "2"), ((11, 4, 1), "2")])
def test_sampling_uses_the_plugin_of_the_installed_version(
    nano_bundle: Path,
    jobs: list[Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: tuple[int, ...],
    plugin: str,
) -> None:
    monkeypatch.setitem(VERSIONS, "tensorrt", version)
    root = shutil.copytree(nano_bundle, tmp_path / "nano")
    asked = target_named("tensorrt").given_options({"sampling": "plugin"}, "int4")
    folder = build(root, "tensorrt", "fp16", asked)
    nodes = [node for node in ir.load(folder / "pixel_encoder.engine").graph if node.op_type == PLUGIN]
    assert {node.attributes["plugin_version"].as_string() for node in nodes} == {plugin}
    assert all(job.plugins for job in jobs) and read_build(folder, "").options["sampling"] == "plugin"
    build(root, "tensorrt", "fp16", asked)
    assert len(jobs) == 5
    build(root, "tensorrt", "fp16")
    assert len(jobs) == 10 and not jobs[-1].plugins
    assert not any(node.op_type == PLUGIN for node in ir.load(folder / "pixel_encoder.engine").graph)


def test_the_command_line_sorts_compute_capabilities(
    bundle_path: Path, jobs: list[Job], capsys: pytest.CaptureFixture[str]
) -> None:
    for text, code in (("8.9, 8.6,8.9", 0), ("", 2), ("8.9,", 2)):
        with pytest.raises(SystemExit) as caught:
            main(["build", str(bundle_path), "--target", "tensorrt-rtx", "--compute-capability", text])
        assert caught.value.code == code, capsys.readouterr().err
    assert jobs[0].compute_capabilities == ["8.6", "8.9"] and len(jobs) == 5


def test_the_disk_check_counts_kernels(
    bundle_path: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines with small weights are mostly kernels: those of lira-nano take 34 MiB."""
    free = 40 << 20
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(free, free, free))
    with pytest.raises(LiraError, match=r"has 40 MiB of disk left, the build needs about 8\d MiB"):
        build(bundle_path, "tensorrt-rtx", "fp16")


def test_int4_without_a_weight_in_int4_is_refused(
    bundle_path: Path, nano_bundle: Path, jobs: list[Job], tmp_path: Path
) -> None:
    """lira-nano's weights fit blocks of 32: only TensorRT for RTX compiles them, undocumented."""
    root = shutil.copytree(nano_bundle, tmp_path / "nano")
    for path, target, sizes in ((bundle_path, "tensorrt-rtx", "32, 64, 128"), (root, "tensorrt", "64, 128")):
        with pytest.raises(LiraError, match=f"no weight of .* in blocks of {sizes} inputs: take --precision"):
            build(path, target, "int4")
        assert not list((path / "engines").iterdir())
    with pytest.raises(LiraError, match="block size 32: expected 64 or 128"):
        build(root, "tensorrt", "int4", target_named("tensorrt").given_options({"block_size": 32}, "int4"))


@pytest.mark.parametrize("block, bits", [(128, 4), (64, 4), (32, 16)])
def test_options_set_block_size_and_lm_head_bits(
    bundle_path: Path,
    random_llm: Callable[[LlmConfig, int], ir.Model],
    jobs: list[Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    block: int,
    bits: int,
) -> None:
    """For weights that any block divides, unlike lira-nano's."""
    config = LlmConfig(
        vocab_size=20, hidden_size=128, intermediate_size=128, num_layers=1, num_heads=2, num_kv_heads=1,
        rope_theta=1e4, rms_norm_eps=1e-5,
    )  # fmt: skip
    monkeypatch.setattr(trt_build, "read_graph", lambda path: random_llm(config, 16))
    monkeypatch.setattr(trt_build.lowered_reference, "record_in_process", lambda *what: None)
    target = target_named("tensorrt-rtx")
    bundle = Bundle.open(bundle_path)
    options = RtxOptions(block_size=block, lm_head_bits=bits)
    builder = target.builder(bundle, "int4", options, None, lambda stage, phase: None)
    builder.stage("llm", tmp_path)
    graph = ir.load(tmp_path / "llm.engine").graph
    weights = [node for node in graph if node.op_type == "DequantizeLinear"]
    assert {node.attributes["block_size"].as_int() for node in weights} == {block}
    assert ("lm_head.int4" in graph.initializers) == (bits == 4)


def test_a_weight_that_does_not_fit_into_fp16_is_recorded(
    bundle_path: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> ir.Model:
        model = read_graph(path)
        if "w" in model.graph.initializers:  # the semantic encoder's
            model.graph.initializers["w"].const_value = ir.tensor(np.full((24, 8), 1e5, np.float32), name="w")
        return model

    monkeypatch.setattr(trt_build, "read_graph", read)
    record = read_build(build(bundle_path, "tensorrt-rtx", "fp16"), "")
    assert record.kept_fp32 == {"semantic_encoder": ("w",)}


def test_kernel_timings_are_not_shared_between_versions(
    bundle_path: Path, jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ((10, 3, 0), (10, 3, 1)):
        monkeypatch.setitem(VERSIONS, "tensorrt", version)
        build(bundle_path, "tensorrt", "fp16")
    assert len(jobs) == 10 and len({job.timing_cache for job in jobs}) == 2


@pytest.fixture
def recipe(nano_bundle: Path, tmp_path: Path) -> Path:
    """A recipe of lira-nano: weights of its language model in 4 bits, SEFE's in 8 with activations."""
    bundle, folder = Bundle.open(nano_bundle), tmp_path / "recipe"
    folder.mkdir()
    stages = {
        "llm": StageRecipe({f"layers.{layer}.up": Form("int4", 64) for layer in range(4)}),
        "sefe": StageRecipe({"model.0.weight": Form("w8a8", range=(-4.0, 4.0))}),
    }
    write_recipe(Recipe("lira-nano", sources_of(bundle), stages), folder)
    return folder


@pytest.mark.parametrize("target", VERSIONS)
def test_graphs_of_a_recipe_are_judged_before_any_is_compiled(
    nano_bundle: Path,
    recipe: Path,
    jobs: list[Job],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
) -> None:
    asked: list[Candidate] = []
    refused = ""

    def judge(candidate: Candidate) -> Judgement:
        asked.append(candidate)
        assert jobs == [] and candidate.graphs and candidate.target == target
        kinds = {s: {n.op_type for n in ir.load(candidate.folder / f"{s}.onnx").graph} for s in STAGES}
        assert {s for s, found in kinds.items() if "DequantizeLinear" in found} == {"llm", "sefe"}
        return Judgement("lowered graphs", 1, 1, budget="none", refused=refused, not_judged="no ONNX Runtime")

    monkeypatch.setattr(building, "installed_judge", lambda: judge)
    root = shutil.copytree(nano_bundle, tmp_path / "nano")
    refused = "cIoU loses 9.00 points"
    with pytest.raises(LiraError, match=f"{target}-mixed engines are beyond the budget: cIoU loses"):
        build(root, target, recipe=recipe)
    assert jobs == [] and not list((root / "engines").glob(f"*{target}-mixed*"))
    refused = ""
    folder = build(root, target, recipe=recipe)
    assert len(asked) == 2 and [Path(job.graph).stem for job in jobs] == list(STAGES)
    assert [len(job.profiles) for job in jobs] == [2 if stage == "llm" else 1 for stage in STAGES]
    record = read_build(folder, "")
    changed = {stage: "mixed" if stage in ("llm", "sefe") else "fp16" for stage in STAGES}
    assert record.precisions == changed
    expected = {f"{stage}.expected.npz" for stage in ("llm", "sefe")}
    names = {path.name for path in folder.iterdir()}
    assert names == {"build.json", *(f"{stage}.engine" for stage in STAGES), *expected}
    assert lowered_outputs.read(folder, "sefe").keys() == {"pixel_tokens", "query_tokens"}
    assert target_named(target).remarks(record) == []
    del record.files["sefe.expected.npz"]
    (remark,) = target_named(target).remarks(record)
    assert "computes the lowered sefe: verify will compare sefe with nothing" in remark
    usable_build(Bundle.open(root), target_named(target), "mixed")


def test_a_kind_or_block_that_tensorrt_lacks_is_refused(
    nano_bundle: Path, recipe: Path, jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "installed_judge", lambda: None)
    root = shutil.copytree(nano_bundle, tmp_path / "nano")
    stages = {"llm": StageRecipe({"layers.0.up": Form("int4", 32)})}
    write_recipe(dataclasses.replace(read_recipe(recipe), stages=stages), recipe)
    with pytest.raises(LiraError, match=r"layers\.0\.up of llm in int4/32: TensorRT has no blocks of 32"):
        build(root, "tensorrt", recipe=recipe)
    monkeypatch.setattr(trt_target.NativeTarget, "kinds", ("w8a8",))
    with pytest.raises(LiraError, match=r"tensorrt has no int4 weights, .* layers\.0\.up of llm; it has w8"):
        build(root, "tensorrt", recipe=recipe)
    assert jobs == [] and not list((root / "engines").glob("*tensorrt*"))


def test_targets_have_the_kinds_that_their_pipelines_lower() -> None:
    kinds = {name: target_named(name).kinds for name in ("cpu", "cuda", *VERSIONS)}
    assert kinds == {"cpu": cpu.KINDS, "cuda": cuda.KINDS, **dict.fromkeys(VERSIONS, tensorrt.KINDS)}
