"""How a build for CUDA decides how its engines run, with the CPU provider in the CUDA provider's place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lira_engine import Bundle, LiraError
from lira_engine.build import build, plan_build
from lira_engine.bundle.manifest import MAX_TILES
from lira_engine.engines.accuracy import WrongOutput
from lira_engine.engines.builder import BuiltStage
from lira_engine.engines.record import read_build
from lira_engine.engines.usable import forced_remark
from lira_engine.engines.verified import require_verified
from lira_engine.errors import OutOfMemory
from lira_engine.ort import build_cuda
from lira_engine.ort import target as ort_target
from lira_engine.ort.build_cuda import CudaBuilder
from lira_engine.ort.device import CPU
from lira_engine.ort.llm import OrtLlm
from lira_engine.ort.opening import OrtOpener
from lira_engine.ort.options import CudaOptions
from lira_engine.ort.stage import OrtStage
from lira_engine.ort.step_graph import NotCaptured, StepGraph
from lira_engine.targets import target_named

pytestmark = pytest.mark.portable
MOST = MAX_TILES + 1
Build = Callable[..., BuiltStage]


@pytest.fixture
def built(nano_bundle: Path, tmp_path: Path) -> Build:
    """built(stage, precision, option=value...) builds a stage."""
    opener = OrtOpener(Bundle.open(nano_bundle), 1, CPU)

    def built(stage: str, precision: str = "fp16", **options: Any) -> BuiltStage:
        target = target_named("cuda")
        builder = CudaBuilder(opener, target, precision, CudaOptions(**options), lambda stage, phase: None)
        return builder.stage(stage, tmp_path)

    return built


def test_the_semantic_encoder_is_checked_with_one_tile_and_with_all(
    built: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    start = OrtStage.start

    def counted(stage: OrtStage, feeds: Any) -> Any:
        passes.append(len(feeds["pixel_values"]))
        return start(stage, feeds)

    monkeypatch.setattr(OrtStage, "start", counted)
    found = built("semantic_encoder")
    assert passes == [1, 1, MOST]
    assert (found.chosen, found.said) == ({"tiles": MOST}, (f"up to {MOST} tiles a pass",))


def test_tiles_beyond_the_memory_are_read_one_at_a_time(
    built: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = OrtStage.start

    def full(stage: OrtStage, feeds: Any) -> Any:
        if len(feeds["pixel_values"]) > 1:
            raise OutOfMemory("out of memory on the GPU")
        return start(stage, feeds)

    monkeypatch.setattr(OrtStage, "start", full)
    found = built("semantic_encoder")
    assert found.chosen == {"tiles": 1} and found.errors
    assert found.said == (f"one tile a pass: {MOST} take more memory than the GPU has free",)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tiles": "one"}, "one tile a pass, as asked"),
        ({"provider": "tensorrt"}, "one tile a pass: provider tensorrt compiles for each number of tiles"),
    ],
)
def test_tiles_are_read_one_at_a_time(built: Build, options: dict[str, str], said: str) -> None:
    found = built("semantic_encoder", **options)
    assert (found.chosen, found.said) == ({"tiles": 1}, (said,))


def test_tiles_that_come_out_wrong_together_end_a_build(
    built: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at a time they are right: no reason to go back to that and say nothing."""
    run = OrtStage.run

    def wrong(stage: OrtStage, feeds: Any) -> dict[str, np.ndarray]:
        found = run(stage, feeds)
        return {name: np.roll(array, 1, axis=0) for name, array in found.items()}

    monkeypatch.setattr(OrtStage, "run", wrong)
    with pytest.raises(LiraError, match="the cuda engine of semantic_encoder is wrong: output features"):
        built("semantic_encoder")


def test_decode_steps_are_captured(built: Build) -> None:
    found = built("llm")
    assert (found.chosen, found.said) == ({"step_graph": "on"}, ("decode steps are CUDA graphs",))


def test_steps_that_cannot_be_captured_run_without(built: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    init = OrtLlm.__init__

    def refuse(llm: OrtLlm, path: Path, threads: int | None = None, device: Any = CPU) -> None:
        if device.captures:
            raise NotCaptured("build again", "cannot use the graph capture feature")
        init(llm, path, threads, device)

    monkeypatch.setattr(OrtLlm, "__init__", refuse)
    found = built("llm")
    assert found.chosen == {"step_graph": "off"} and found.errors
    (said,) = found.said
    assert said.startswith("decode steps are no CUDA graphs: ONNX Runtime ")
    assert said.endswith(" says: cannot use the graph capture feature")


def test_steps_are_not_captured_as_asked(built: Build) -> None:
    found = built("llm", step_graph="off")
    assert (found.chosen["step_graph"], found.said) == ("off", ("decode steps are no CUDA graphs, as asked",))


def test_a_captured_step_that_is_wrong_ends_a_build(built: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no fallback: the same engine without graphs would pass."""
    run = StepGraph.run
    monkeypatch.setattr(
        StepGraph, "run", lambda step, session, embeds, position: run(step, session, embeds, 5)
    )
    with pytest.raises(LiraError, match="the cuda engine of llm is wrong"):
        built("llm")


def test_fused_int4_matmuls_are_counted(built: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of lira-nano's, ONNX Runtime fuses the LM head, whose outputs are padded."""
    monkeypatch.setattr(build_cuda, "version", lambda: (1, 31))
    _, said = built("llm", "int4", int4_passes="fuse").said
    assert said.startswith("1 of 21 int4 matmuls are fused; the others have blocks other than 32")
    monkeypatch.setattr(build_cuda, "version", lambda: (1, 30))
    _, said = built("llm", "int4", int4_passes="fuse").said
    assert said.startswith("int4 matmuls may be dequantized: fusing them is known of ONNX Runtime 1.31")


def test_fused_passes_need_blocks_of_32() -> None:
    with pytest.raises(LiraError, match="fused int4 passes need blocks of 32, not 64"):
        CudaOptions(int4_passes="fuse", block_size=64)


def test_an_opener_does_what_the_build_chose(nano_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_target, "cuda_device", lambda precision, provider, allow: CPU)
    target, bundle = target_named("cuda"), Bundle.open(nano_bundle)
    options = CudaOptions(int4_passes="fuse").recorded("quantized")
    undecided = target.opener(bundle, "int4", options, 1)
    assert undecided.tiles_at_once == 1 and not undecided.device.captures  # type: ignore[attr-defined]
    opener = target.opener(bundle, "int4", options | {"step_graph": "on", "tiles": MOST}, 1)
    assert opener.tiles_at_once == MOST
    assert opener.device == replace(CPU, captures=True, fuses_int4=True)  # type: ignore[attr-defined]


def test_a_wrong_stage_ends_a_build_or_is_kept_by_force(
    nano_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without engines `verify --bisect` would have nothing to search. They do not run before verify."""
    monkeypatch.setattr(ort_target, "cuda_device", lambda precision, provider, allow: CPU)
    check = build_cuda.check_stage_outputs

    def wrong(what: str, precision: str, found: Any, vectors: Any) -> Any:
        return check(what, precision, {name: found[name] * 0 for name in found}, vectors)

    monkeypatch.setattr(build_cuda, "check_stage_outputs", wrong)
    bundle = tmp_path / "nano"
    shutil.copytree(nano_bundle, bundle, ignore=shutil.ignore_patterns("engines"))
    with pytest.raises(WrongOutput, match=r"is wrong.* `lira-edge build .* --force`, then .* --bisect`$"):
        build(bundle, "cuda", "fp16")
    folder = bundle / "engines" / "cuda-fp16"
    assert not folder.exists()
    build(bundle, "cuda", "fp16", force=True)
    record = read_build(folder, "")
    assert "output features differs" in record.wrong["semantic_encoder"] and not record.errors["llm"]
    assert record.settled == record.options  # nothing was chosen: one tile, no graphs
    assert "kept by --force: the cuda engine of semantic_encoder is wrong" in forced_remark(record)
    with pytest.raises(LiraError, match="were not verified"):
        require_verified(record, target_named("cuda"), bundle)
    assert plan_build(bundle, "cuda", "fp16").up_to_date is False
    monkeypatch.setattr(build_cuda, "check_stage_outputs", check)
    build(bundle, "cuda", "fp16")
    assert not read_build(folder, "").wrong
