"""A build with a recipe: what it lowers, records and refuses, and what its judge decides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_engine import Bundle, LiraError, open_engines
from lira_engine import build as building
from lira_engine.build import build, plan_build
from lira_engine.engines.judgement import Candidate, Judgement, Loss
from lira_engine.engines.recipe import (
    Form,
    Recipe,
    Smoothing,
    StageRecipe,
    codes_key,
    read_recipe,
    scales_key,
    smoothing_key,
    sources_of,
    write_recipe,
)
from lira_engine.engines.record import read_build
from lira_engine.engines.usable import usable_build
from lira_engine.inspect import describe
from lira_engine.main import main
from lira_engine.targets import target_named

WEIGHTS = tuple(f"layers.{layer}.{name}" for layer in range(2) for name in ("q", "gate", "down"))
NEAREST = StageRecipe({weight: Form("int4", 32) for weight in WEIGHTS})
REFUSED = "mask IoU with fp32 loses 9.00 points"


class FakeJudge:
    """Notes what it is asked, and says what it was told."""

    def __init__(self) -> None:
        self.refused = ""
        self.asked: list[Candidate] = []

    def __call__(self, candidate: Candidate) -> Judgement:
        self.asked.append(candidate)
        present = {path.name for path in candidate.folder.iterdir()}
        assert {f"{stage}.onnx" for stage in ("llm", "sefe", "pixel_encoder")} < present
        losses = {"iou": Loss(0.002, -0.001, 0.004, 0.01)}
        return Judgement("engines", 3, 5, {"iou": 0.998}, losses, "IoU -1%", self.refused)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> FakeJudge:
    fake = FakeJudge()
    monkeypatch.setattr(building, "installed_judge", lambda: fake)
    return fake


@pytest.fixture
def written(bundle_path: Path, tmp_path: Path) -> Callable[..., Path]:
    """written(stages, ...): the folder of a recipe for the bundle, with other fields of Recipe as given."""
    bundle = Bundle.open(bundle_path)

    def write(stages: dict[str, StageRecipe] | None = None, **given: Any) -> Path:
        folder = tmp_path / f"recipe-{len(list(tmp_path.glob('recipe-*')))}"
        folder.mkdir()
        recipe = Recipe("tiny", sources_of(bundle), {"llm": NEAREST} if stages is None else stages)
        write_recipe(replace(recipe, **given), folder)
        return folder

    return write


def mixed(bundle: Path) -> Path:
    return bundle / "engines" / "cpu-mixed"


def test_a_build_records_its_recipe_and_judgement(
    bundle_path: Path, written: Callable[..., Path], judge: FakeJudge
) -> None:
    recipe = written()
    said: list[tuple[str, str]] = []
    folder = build(
        bundle_path, threads=1, recipe=recipe, progress=lambda stage, phase: said.append((stage, phase))
    )
    assert folder == mixed(bundle_path) and said[-1] == ("judge", "done")
    record = read_build(folder, "")
    assert record.precisions == {stage: "mixed" if stage == "llm" else "fp32" for stage in record.precisions}
    assert record.precision == "mixed" and record.recipe == read_recipe(recipe).digest
    assert record.forms == {"llm": {"int4/32": len(WEIGHTS)}}
    assert record.judgement is not None and record.judgement.losses["iou"].limit == 0.01
    assert not record.judgement.forced
    (asked,) = judge.asked
    assert (asked.target, asked.recipe.digest, asked.recipe_folder, asked.graphs, asked.threads) == (
        "cpu", record.recipe, recipe, False, 1,
    )  # fmt: skip
    operators = {node.op_type for node in ir.load(folder / "llm.onnx").graph}
    assert "MatMulNBits" in operators
    with open_engines(bundle_path, "cpu", "mixed", threads=1) as engines:
        assert engines.precision == "mixed" and engines.remark == ""


def test_engines_of_the_same_recipe_are_up_to_date(
    bundle_path: Path, written: Callable[..., Path], judge: FakeJudge
) -> None:
    recipe, other = written(), written({"llm": StageRecipe({WEIGHTS[0]: Form("int8", 32)})})
    build(bundle_path, recipe=recipe)
    build(bundle_path, "cpu", "mixed", recipe=recipe / "recipe.json")
    assert len(judge.asked) == 1
    assert plan_build(bundle_path, recipe=recipe).up_to_date
    assert not plan_build(bundle_path, recipe=other).up_to_date
    build(bundle_path, recipe=other)
    assert len(judge.asked) == 2 and judge.asked[-1].recipe_folder == other
    build(bundle_path, recipe=other, force=True)
    assert len(judge.asked) == 3


def test_what_the_judge_refuses_is_not_kept(
    bundle_path: Path, written: Callable[..., Path], judge: FakeJudge
) -> None:
    judge.refused = REFUSED
    first, second = written(), written({"llm": StageRecipe({WEIGHTS[0]: Form("int8", 32)})})
    with pytest.raises(LiraError, match=f"cpu-mixed engines are beyond the budget: {REFUSED}.*--force"):
        build(bundle_path, recipe=first)
    assert os.listdir(bundle_path / "engines") == []
    judge.refused = ""
    build(bundle_path, recipe=first)
    judge.refused = REFUSED
    with pytest.raises(LiraError, match="beyond the budget"):
        build(bundle_path, recipe=second)
    assert usable_build(Bundle.open(bundle_path), target_named("cpu"), "mixed").recipe == (
        read_recipe(first).digest
    )


def test_what_force_keeps_is_said_where_it_is_opened(
    bundle_path: Path, written: Callable[..., Path], judge: FakeJudge
) -> None:
    judge.refused = REFUSED
    recipe = written()
    build(bundle_path, recipe=recipe, force=True)
    kept = read_build(mixed(bundle_path), "").judgement
    assert kept is not None and kept.forced and kept.refused == REFUSED
    with open_engines(bundle_path, "cpu", "mixed", threads=1) as engines:
        assert engines.remark == f"engines cpu-mixed were kept by --force: {REFUSED} (budget IoU -1%)"
    assert ("refused", f"{REFUSED}; kept by --force") in dict(describe(mixed(bundle_path)))[
        "engines for cpu, mixed"
    ]
    with pytest.raises(LiraError, match="beyond the budget"):  # they are not up to date without --force
        build(bundle_path, recipe=recipe)
    judge.refused = ""
    build(bundle_path, recipe=recipe, force=True)
    kept = read_build(mixed(bundle_path), "").judgement
    assert kept is not None and not kept.forced


def of_another_bundle(recipe: Recipe) -> Recipe:
    return replace(recipe, sources=recipe.sources | {"llm.onnx": "0" * 64})


def without_codes(recipe: Recipe) -> Recipe:
    return replace(recipe, stages={"llm": StageRecipe({WEIGHTS[0]: Form("int4", 32, "gptq")})})


def unknown_norm(recipe: Recipe) -> Recipe:
    one = Smoothing("layers.0", ("layers.0.some_norm",), (WEIGHTS[0],))
    scale = {smoothing_key("layers.0"): np.ones(8, np.float32)}
    return replace(recipe, stages={"llm": StageRecipe({}, (one,), scale)})


def with_form(form: Form, stage: str = "llm", weight: str = WEIGHTS[0]) -> Callable[[Recipe], Recipe]:
    return lambda recipe: replace(recipe, stages={stage: StageRecipe({weight: form})})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            of_another_bundle,
            r"the recipe is for bundle tiny, whose llm\.onnx is 0{12}; .* has [0-9a-f]{12}",
        ),
        (without_codes, r"the recipe lacks the tensor llm/layers\.0\.q\.codes: calibrate again"),
        (unknown_norm, r"llm of .* has no weight 'layers\.0\.some_norm', which the recipe names"),
        (
            with_form(Form("fp8", range=(-1.0, 1.0))),
            r"target cpu has no fp8 weights, .* at layers\.0\.q of llm; it has int4, int8, w8a8: calibrate",
        ),
        (with_form(Form("int4", 32), weight="layers.7.q"), r"has no weight 'layers\.7\.q', which the recipe"),
        (
            with_form(Form("int4", 32), "decoder"),
            "the recipe has a stage 'decoder', expected seman",
        ),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(
    bundle_path: Path,
    written: Callable[..., Path],
    judge: FakeJudge,
    change: Callable[[Recipe], Recipe],
    reason: str,
) -> None:
    folder = written()
    write_recipe(change(replace(read_recipe(folder), stages={"llm": NEAREST})), folder)
    for act in (build, plan_build):
        with pytest.raises(LiraError, match=reason) as caught:
            act(bundle_path, recipe=folder)
        assert "\n" not in str(caught.value)
    assert judge.asked == [] and not (bundle_path / "engines").exists()


def test_a_missing_smoothing_scale_is_refused(
    bundle_path: Path, written: Callable[..., Path], judge: FakeJudge
) -> None:
    norm = next(
        name
        for name, value in ir.load(bundle_path / "llm.onnx").graph.initializers.items()
        if value.shape is not None and len(value.shape) == 1 and value.shape[0] == 8
    )
    one = Smoothing("layers.0", (norm,), (WEIGHTS[0],))
    with pytest.raises(LiraError, match=r"the recipe lacks the tensor llm/layers\.0\.smoothing"):
        build(bundle_path, recipe=written({"llm": StageRecipe({}, (one,))}))
    assert smoothing_key("layers.0") == "layers.0.smoothing"


def test_an_edited_or_incomplete_recipe_is_refused(
    bundle_path: Path, written: Callable[..., Path], judge: FakeJudge
) -> None:
    folder = written()
    file = folder / "recipe.json"
    data = json.loads(file.read_text())
    data["stages"]["llm"]["forms"][WEIGHTS[0]]["block"] = 64
    file.write_text(json.dumps(data))
    with pytest.raises(LiraError, match="was edited: its content no longer has the digest"):
        build(bundle_path, recipe=folder)
    other = written()
    (other / "tensors.safetensors").unlink()
    with pytest.raises(LiraError, match=r"tensors\.safetensors is missing; calibrate again"):
        build(bundle_path, recipe=other)
    with pytest.raises(LiraError, match=r"holds no recipe\.json, expected a recipe"):
        build(bundle_path, recipe=bundle_path)


def test_precision_and_recipe_go_together(
    bundle_path: Path, written: Callable[..., Path], judge: FakeJudge, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LiraError, match="precision mixed needs a recipe: give --recipe RECIPE"):
        build(bundle_path, "cpu", "mixed")
    with pytest.raises(LiraError, match="a recipe makes mixed engines: leave precision int4 out"):
        build(bundle_path, "cpu", "int4", recipe=written())
    for arguments in (("--precision", "mixed"), ("--recipe", str(written()), "--precision", "fp32")):
        with pytest.raises(SystemExit) as caught:
            main(("build", str(bundle_path), *arguments))
        assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    with pytest.raises(LiraError, match="cpu-mixed engines have no option block size"):
        target_named("cpu").given_options({"block_size": 64}, "mixed")
    with pytest.raises(LiraError, match=r"no precision 'int3'; expected fp32, int8, int4, mixed \(with"):
        build(bundle_path, "cpu", "int3")


def test_missing_mixed_engines_name_the_recipe(bundle_path: Path) -> None:
    command = f"run `lira-edge build {bundle_path} --target cpu --recipe RECIPE`"
    with pytest.raises(LiraError, match=command):
        open_engines(bundle_path, "cpu", "mixed")


def test_a_record_without_its_recipe_is_refused(
    bundle_path: Path, written: Callable[..., Path], judge: FakeJudge
) -> None:
    file = build(bundle_path, recipe=written()) / "build.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"recipe": ""}))
    with pytest.raises(LiraError, match=r"build\.json lists no recipe; run .* --recipe RECIPE`"):
        open_engines(bundle_path, "cpu", "mixed")


def test_values_that_are_not_finite_name_the_first_tensor(
    bundle_path: Path, written: Callable[..., Path], judge: FakeJudge
) -> None:
    """Scales that overflow: the weight's matmul is the first that is not finite. --force does not help."""
    weight = WEIGHTS[1]
    part = StageRecipe(
        {weight: Form("int4", 32, "gptq")},
        tensors={
            codes_key(weight): np.full((12, 1, 16), 0xFF, np.uint8),
            scales_key(weight): np.full((12, 1), 6e4, np.float16),
        },
    )
    recipe = written({"llm": part})
    with pytest.MonkeyPatch.context() as patched:
        # Finite weights, whose products are not: a hand-made file could hold such.
        patched.setattr(StageRecipe, "codes", huge_codes)
        for force in (False, True):
            said = r"^llm: \S*gate\S* \(MatMulNBits\) is not finite on the check vectors; nothing was kept"
            with pytest.raises(LiraError, match=said):
                build(bundle_path, recipe=recipe, force=force)
    assert judge.asked == [] and os.listdir(bundle_path / "engines") == []


def huge_codes(part: StageRecipe, weight: str) -> tuple[np.ndarray, np.ndarray]:
    return part.tensors[codes_key(weight)], np.full((12, 1), 3e38, np.float32)


def test_a_dry_run_knows_the_recipe(
    bundle_path: Path, written: Callable[..., Path], judge: FakeJudge, printed_by: Callable[..., str]
) -> None:
    recipe = written()
    plan = plan_build(bundle_path, recipe=recipe)
    assert plan.precisions["llm"] == ("mixed",) and plan.precisions["sefe"] == ("fp32",)
    printed = printed_by("build", str(bundle_path), "--recipe", str(recipe), "--dry-run")
    assert f"would write {mixed(bundle_path)}" in printed and "to be built" in printed
    assert not mixed(bundle_path).exists() and judge.asked == []
    whole = plan_build(bundle_path).engine_bytes["llm"]
    assert 0.2 * whole < plan.engine_bytes["llm"] < 0.95 * whole
    assert plan.engine_bytes["sefe"] == plan_build(bundle_path).engine_bytes["sefe"]


def test_the_reproduce_line_forces_only_what_was_refused(
    bundle_path: Path, written: Callable[..., Path], judge: FakeJudge, printed_by: Callable[..., str]
) -> None:
    recipe = written()
    arguments = ("build", str(bundle_path), "--recipe", str(recipe), "--threads", "1")
    command = f"reproduce: lira-edge build {bundle_path} --target cpu --recipe {recipe} --threads 1"
    printed = printed_by(*arguments, "--force")
    assert printed.splitlines()[-1] == command
    assert "99.80 %: loses 0.20 points (95 %: -0.10 to 0.40), at most 1.00" in printed
    judge.refused = REFUSED
    printed = printed_by(*arguments, "--force")
    assert printed.splitlines()[-1] == f"{command} --force" and f"{REFUSED}; kept by --force" in printed


def test_one_judge_is_needed(
    bundle_path: Path, written: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lira_engine.engines.judgement.metadata.entry_points", lambda group: [])
    with pytest.raises(LiraError, match=r"needs one judge \(entry points lira_edge\.judges\), found none"):
        build(bundle_path, recipe=written())
    assert not (bundle_path / "engines").exists()


SLOW = """
    import sys
    from lira_engine import build as building

    def judge(candidate):
        print("ready", flush=True)
        sys.stdin.readline()

    building.installed_judge = lambda: judge
    building.build(sys.argv[1], threads=1, recipe=sys.argv[2])
"""


def test_a_build_killed_while_it_is_judged_leaves_nothing_usable(
    bundle_path: Path, written: Callable[..., Path], judge: FakeJudge
) -> None:
    recipe = written()
    command = [sys.executable, "-c", textwrap.dedent(SLOW), str(bundle_path), str(recipe)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.kill()
    (left,) = os.listdir(bundle_path / "engines")
    assert left.startswith(".cpu-mixed.partial-")
    with pytest.raises(LiraError, match="holds no engines"):
        usable_build(Bundle.open(bundle_path), target_named("cpu"), "mixed")
    build(bundle_path, recipe=recipe)
    assert os.listdir(bundle_path / "engines") == ["cpu-mixed"]


def test_a_bundle_with_mixed_engines_lists_them(
    bundle_path: Path, written: Callable[..., Path], judge: FakeJudge, printed_by: Callable[..., str]
) -> None:
    build(bundle_path, recipe=written())
    assert ("cpu-mixed", "ready") in dict(describe(bundle_path))["engines"]
    rows = dict(describe(mixed(bundle_path)))["engines for cpu, mixed"]
    assert ("llm weights", f"{len(WEIGHTS)} int4/32") in rows
    assert ("judged", "engines on 5 held-out questions about 3 pictures") in rows
