"""From `build` to `verify` to an answer, with lowered graphs of each dialect in place of engines. Only
TensorRT's compiler and the GPU are stand-ins."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lira_engine import build as building
from lira_engine import verify
from lira_engine.build import build
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.accuracy import Checked
from lira_engine.engines.judgement import Judgement
from lira_engine.engines.recipe import Form, Recipe, StageRecipe, sources_of, write_recipe
from lira_engine.engines.record import read_build
from lira_engine.errors import LiraError
from lira_engine.open import open_engines
from lira_engine.targets import target_named
from lira_engine.trt.compile import Job
from lira_engine.trt.llm import TrtLlm
from lira_engine.trt.stage import TrtStage, TrtTensor
from lira_engine.verify import tables
from lira_runtime import Lira
from lira_runtime.verify_answer import check_answer

verify_engines = partial(verify.verify_engines, ask=check_answer)
PHOTO = Path(__file__).parents[3] / "assets" / "sample.png"


class Compiler:
    """Writes an engine that runs the lowered graph itself."""

    def __init__(self, installed: Any, bundle: Path, graphs: Path) -> None:
        self._installed, self._manifest, self._graphs = installed, Bundle.open(bundle).manifest, graphs

    def __call__(self, job: Job, phase: Callable[[str], None]) -> dict[str, int]:
        graph = Path(job.graph)
        kept = self._graphs / graph.name
        for file in (graph, graph.with_name(f"{graph.name}.data")):
            if file.exists():
                shutil.copy(file, self._graphs)
        half = any(tensor.type == "tensor(float16)" for tensor in self._inputs(kept))
        changes = {"cache_dtype": "float16" if half else "float32", "llm_profiles": len(job.profiles)}
        self._installed.engine(Path(job.out), self._manifest, graph.stem, kept, **changes)
        return {"peak_rss_mib": 1, "layers": 1}

    def _inputs(self, graph: Path) -> Any:
        from lira_engine.ort.session import open_session

        return open_session(graph, threads=1).get_inputs()


@pytest.fixture(params=["rtx", "thor", "orin"])
def installed(request: pytest.FixtureRequest, installed_as: Any, stand_in_gpu: None) -> Any:
    return installed_as(request.param)


@pytest.fixture
def compiler(installed: Any, nano_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    (tmp_path / "graphs").mkdir()
    shutil.copytree(nano_bundle, tmp_path / "nano")
    found = Compiler(installed, tmp_path / "nano", tmp_path / "graphs")
    monkeypatch.setattr("lira_engine.trt.build.compile_in_process", found)
    return found


@pytest.mark.parametrize("installed", ["rtx"], indirect=True)
def test_near_ties_that_the_device_decides_otherwise_are_judged(
    installed: Any,
    compiler: Compiler,
    tmp_path: Path,
    plant_ties: Callable[[Path], Callable[[Mapping[int, float]], None]],
) -> None:
    """The queries: see tests/engine/test_near_ties.py."""
    bundle, target = tmp_path / "nano", installed.target
    plant = plant_ties(bundle)
    folder = build(bundle, target, "fp32")
    plant({6: 1e-6})
    found = verify_engines(bundle, target, "fp32", threads=1)
    assert [flip.element for flip in found.flips["pixel_encoder"]] == [6]
    assert found.judgement is not None and found.judgement.ran == "engines" and not found.judgement.refused
    assert "query_valid 6 is now false" in str(tables(found, read_build(folder, "")))
    for margins, why in (({3: 1e-6}, "at a cost: .*mask IoU"), ({6: 1e-2}, "query_valid 6 is now false")):
        plant(margins)
        with pytest.raises(LiraError, match=why):
            verify_engines(bundle, target, "fp32", threads=1)
        assert read_build(folder, "").verified is None


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_built_engines_verify_and_answer_as_the_portable_graphs(
    installed: Any, compiler: Compiler, tmp_path: Path, precision: str
) -> None:
    bundle, target = tmp_path / "nano", installed.target
    if (target, precision) == ("tensorrt", "int4"):
        with pytest.raises(LiraError, match=r"no weight of .* fits into int4, which target tensorrt"):
            build(bundle, target, precision)
        return
    folder = build(bundle, target, precision)
    with pytest.raises(LiraError, match=f"{target}-{precision} engines were not verified on a device"):
        open_engines(bundle, target, precision)
    found = verify_engines(bundle, target, precision, threads=1)
    assert set(found.errors) == set(STAGES)
    assert found.cutting < 1e-3 and read_build(folder, "").verified == found
    assert found.cuda_calls == installed.driver.name
    shown = dict(tables(found, read_build(folder, "")))["verified on"]
    assert ("CUDA's calls", installed.driver.name) in shown
    with Lira.open(bundle, "portable", threads=1) as lira:
        text, masks = described(lira)
    with Lira.open(bundle, target, precision) as lira:
        assert isinstance(lira.engines.llm, TrtLlm)
        answer, found_masks = described(lira)
    assert answer == text and len(masks) > 1
    for mask, other in zip(found_masks, masks, strict=True):
        overlap = np.logical_and(mask, other).sum() / np.logical_or(mask, other).sum()
        assert overlap > (0.9 if precision == "int4" else 0.99)
    assert installed.gpu.used == 0


def described(lira: Lira) -> tuple[str, list[np.ndarray]]:
    """Return a grounded answer's raw text and all its masks."""
    answer = lira.look(PHOTO).ask(task="gcg")
    return answer.raw_text, [mask.binary for mask in answer.masks]


def test_verify_finds_a_slightly_wrong_kernel_in_int4(
    compiler: Compiler, installed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if one attention head were wrong: int4 may differ so from fp32, not from its own graph."""
    if installed.target == "tensorrt":
        pytest.skip("lira-nano has no int4 there")
    bundle, target = tmp_path / "nano", installed.target
    folder = build(bundle, target, "int4")
    found = verify_engines(bundle, target, "int4", threads=1)
    assert max(found.lowered.values()) < 0.01 < max(found.errors["llm"].values())
    assert "its own lowered graph" in str(tables(found, read_build(folder, "")))

    def wrong(self: Any, embeds: np.ndarray, cache: Any, logit_positions: Any = (-1,)) -> Any:
        out = forward(self, embeds, cache, logit_positions)
        out.logits[:] += 0.1 * np.abs(out.logits).mean() * np.sign(np.sin(np.arange(out.logits.shape[-1])))
        return out

    forward = TrtLlm.forward
    monkeypatch.setattr(TrtLlm, "forward", wrong)
    with pytest.raises(
        LiraError, match=r"engine of llm, beside its own lowered graph, is wrong: output logits differs"
    ):
        verify_engines(bundle, target, "int4", threads=1)
    assert read_build(folder, "").verified is None


def test_verify_finds_a_slightly_wrong_kernel_in_each_stage_that_a_recipe_changes(
    compiler: Compiler, installed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, target, recipe = tmp_path / "nano", installed.target, tmp_path / "recipe"
    recipe.mkdir()
    stages = {
        "llm": StageRecipe({f"layers.{layer}.up": Form("int4", 64) for layer in range(4)}),
        "sefe": StageRecipe({"model.0.weight": Form("w8a8", range=(-6.0, 6.0))}),
    }
    write_recipe(Recipe("lira-nano", sources_of(Bundle.open(bundle)), stages), recipe)
    unjudged = Judgement("lowered graphs", not_judged="nothing runs here")
    monkeypatch.setattr(building, "installed_judge", lambda: lambda candidate: unjudged)
    folder = build(bundle, target, recipe=recipe)
    found = verify_engines(bundle, target, "mixed", threads=1)
    assert {name.partition(".")[0] for name in found.lowered} == {"llm", "sefe"}
    assert max(found.lowered.values()) < 0.01 < max(found.errors["llm"].values())
    said = str(tables(found, read_build(folder, "")))
    assert said.count("its own lowered graph") == 2 and "not judged: nothing runs here" in said
    with Lira.open(bundle, target, "mixed") as lira:
        assert len(described(lira)[1]) > 1
    run = TrtStage.run

    def wrong(self: Any, feeds: Any) -> dict[str, np.ndarray]:
        return {k: a * np.float32(1.04) if self.name == "sefe" else a for k, a in run(self, feeds).items()}

    monkeypatch.setattr(TrtStage, "run", wrong)
    with pytest.raises(LiraError, match=r"engine of sefe, beside its own lowered graph, is wrong: output "):
        verify_engines(bundle, target, "mixed", threads=1)
    assert read_build(folder, "").verified is None


def test_verify_finds_decode_steps_that_differ_from_prefill(
    compiler: Compiler, installed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, target = tmp_path / "nano", installed.target
    build(bundle, target, "fp16")
    forward = TrtLlm.forward

    def forgets(self: Any, embeds: np.ndarray, cache: Any, logit_positions: Any = (-1,)) -> Any:
        step = len(embeds) == 1 and cache.length > 1
        if step:
            cache.fill(cache.length - 1)  # the step overwrites the previous row
        found = forward(self, embeds, cache, logit_positions)
        if step:
            cache.fill(cache.length + 1)
        return found

    monkeypatch.setattr(TrtLlm, "forward", forgets)
    monkeypatch.setattr(
        "lira_engine.verify.check_stage_outputs", lambda *_: Checked({})
    )  # would find it, too
    monkeypatch.setattr("lira_runtime.verify_answer._reference_logits", lambda *_: None)  # as on JetPack 6
    with pytest.raises(LiraError, match=r"token by token they differ by .* from those of the same rows in"):
        verify_engines(bundle, target, "fp16", threads=1)


@pytest.mark.parametrize("stage", ["sefe", "pixel_decoder"])
def test_verify_finds_a_stage_that_misreads_another_ones_output(
    compiler: Compiler, installed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """Check vectors come from the host: they do not show it."""
    bundle, target = tmp_path / "nano", installed.target
    build(bundle, target, "fp16")
    start = TrtStage.start

    def elsewhere(self: TrtStage, feeds: Any) -> Any:
        if self.name == stage:
            feeds = {  # wrong by a hundredth
                name: self.fetch(tensor) * np.float32(1.01) if isinstance(tensor, TrtTensor) else tensor
                for name, tensor in feeds.items()
            }
        return start(self, feeds)

    monkeypatch.setattr(TrtStage, "start", elsewhere)
    with pytest.raises(LiraError, match=f"{stage} reads something else on the device than the pixel encoder"):
        verify_engines(bundle, target, "fp16", threads=1)


def test_engines_rebuilt_during_verify_are_not_verified(
    compiler: Compiler, installed: Any, tmp_path: Path
) -> None:
    bundle, target = tmp_path / "nano", installed.target
    folder = build(bundle, target, "fp32")

    def meanwhile(*arguments: Any) -> Any:
        build(bundle, target, "fp32", target_named(target).given_options({"lm_head_parts": 2}, "int4"))
        return check_answer(*arguments)

    with pytest.raises(LiraError, match="was built again meanwhile: run `lira-edge verify` again"):
        verify_engines(bundle, target, "fp32", threads=1, ask=meanwhile)
    assert read_build(folder, "").verified is None


def test_an_interrupted_verify_leaves_engines_unverified(
    compiler: Compiler, installed: Any, tmp_path: Path
) -> None:
    bundle, target = tmp_path / "nano", installed.target
    folder = build(bundle, target, "fp32")
    verify_engines(bundle, target, "fp32", threads=1)

    def crash(*_: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify_engines(bundle, target, "fp32", threads=1, ask=crash)
    assert read_build(folder, "").verified is None
