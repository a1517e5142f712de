"""The judge of builds: lira-nano's engines on held-out questions, compared with recorded fp32 answers."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from lira_bench.speed import benchmark
from lira_calib.data.sequences import Sequence
from lira_calib.judging import gate
from lira_calib.judging.agreement import Agreement
from lira_calib.judging.checked_engines import checked
from lira_calib.judging.held_out import Fp32Answer, read_held_out, write_held_out, write_questions
from lira_calib.judging.question import Question
from lira_calib.judging.verdict import DEFAULT_TEXT
from lira_calib.scoring.score import Scorer
from lira_engine import LiraError
from lira_engine.build import build
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.external_data import save_graph
from lira_engine.bundle.manifest import STAGES
from lira_engine.engines.judgement import Candidate, Judgement, installed_judge
from lira_engine.engines.recipe import (
    HELD_OUT,
    Budget,
    Form,
    Recipe,
    StageRecipe,
    read_recipe,
    sources_of,
    write_recipe,
)
from lira_engine.engines.record import read_build
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.tensorrt import tensorrt_pipeline
from lira_engine.main import main
from lira_runtime import rle

pytestmark = pytest.mark.portable
TIGHT = Budget("IoU -0.001%", "iou", 1e-5)
WIDE = Budget("IoU -50%", "iou", 0.5)


@pytest.fixture(scope="module")
def answers(calib_bundle: Bundle, recorded: list[Sequence], calib_work: Path) -> list[Fp32Answer]:
    with Scorer(calib_bundle, recorded, calib_work, threads=1) as scorer:
        return [Fp32Answer(tokens, masks) for tokens, masks in scorer.answers()]


@pytest.fixture(scope="module")
def every_weight(calib_bundle: Bundle) -> dict[str, StageRecipe]:
    """int4 for each matmul of the language model's layers and of the ViT."""
    found = {}
    for stage, part in (("llm", "layers."), ("semantic_encoder", "vit.encoder.layers.")):
        weights = ir.load(calib_bundle.stage_file(stage)).graph.initializers
        named = [n for n, v in weights.items() if v.shape is not None and len(v.shape) == 2]
        found[stage] = StageRecipe({n: Form("int4", 32) for n in named if n.startswith(part)})
        assert len(found[stage].forms) > 10
    return found


@pytest.fixture(scope="module")
def made_recipe(
    calib_bundle: Bundle,
    recorded: list[Sequence],
    answers: list[Fp32Answer],
    every_weight: dict[str, StageRecipe],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A recipe with all recorded sequences as held-out questions; to be read only."""
    folder = tmp_path_factory.mktemp("recipe")
    write_held_out(folder / HELD_OUT, recorded, answers)
    write_recipe(
        Recipe(calib_bundle.manifest.name, sources_of(calib_bundle), every_weight, budget=WIDE), folder
    )
    return folder


@pytest.fixture
def recipe(made_recipe: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made_recipe, tmp_path / "recipe"))


@pytest.fixture
def bundle(calib_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the bundle, without engines."""
    return Path(shutil.copytree(calib_bundle.path, tmp_path / "b", ignore=shutil.ignore_patterns("engines")))


def written_again(folder: Path, recipe: Recipe, **changes: Any) -> None:
    """Write `recipe`, which was read from the folder, with other fields, and the files that are there now."""
    stages = {name: StageRecipe(part.forms) for name, part in recipe.stages.items()}
    write_recipe(dataclasses.replace(recipe, stages=stages, **changes), folder)


def fp32_candidate(bundle: Bundle, recipe: Path, **changes: Any) -> Candidate:
    """The fp32 engines in the place of mixed ones."""
    folder = bundle.engine_folder("cpu", "fp32")
    found = Candidate(bundle, read_recipe(recipe), recipe, "cpu", {}, folder, threads=1)
    return dataclasses.replace(found, **changes)


def test_the_installed_judge_is_this_one() -> None:
    assert installed_judge() is gate.judge


def test_fp32_engines_lose_nothing(calib_bundle: Bundle, made_recipe: Path, recorded: list[Sequence]) -> None:
    """Asked pass by pass they answer as recorded from whole sequences, with regions of the given masks."""
    said: list[str] = []
    found = gate.judge(fp32_candidate(calib_bundle, made_recipe, progress=said.append))
    pictures = len({one.request.image for one in recorded})
    assert (found.ran, found.pictures, found.questions) == ("engines", pictures, len(recorded))
    assert said == [f"picture {n + 1} of {pictures}" for n in range(pictures)]
    assert found.metrics["tokens"] == 1.0 and found.metrics["iou"] > 0.9999
    assert set(found.losses) == {"tokens", "iou", "ciou"} and found.refused == ""
    assert abs(found.losses["ciou"].loss) < 1e-4
    assert found.losses["iou"].limit == 0.5 and found.losses["tokens"].limit == 0.5
    assert 0.3 < found.metrics["fp32 ciou"] < 1
    kept = json.loads((made_recipe / HELD_OUT / "questions.json").read_text())
    assert kept["metrics"]["ciou"] == found.metrics["fp32 ciou"]


def test_int4_everywhere_costs_little_and_is_kept_within_a_wide_budget(
    bundle: Path, made_recipe: Path
) -> None:
    folder = build(bundle, threads=1, recipe=made_recipe)
    found = read_build(folder, "").judgement
    assert found is not None and not found.refused and not found.forced
    assert 0.9 < found.metrics["iou"] < 0.9999 and found.budget == "IoU -50%"
    loss = found.losses["iou"]
    assert loss.low <= loss.loss <= loss.high and loss.low < loss.high


def stopped(*_: object) -> None:
    raise LiraError("stopped")


def test_a_build_beyond_the_budget_is_refused_and_forced_and_every_run_says_so(
    bundle: Path,
    recipe: Path,
    calib_scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    written_again(recipe, read_recipe(recipe), budget=TIGHT)
    arguments = ("build", str(bundle), "--recipe", str(recipe), "--threads", "1")

    def run(*command: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(command)
        printed = capsys.readouterr()
        return int(str(caught.value.code)), printed.out, printed.err

    code, _, told = run(*arguments)
    assert code == 2 and told.count("\n") == 1
    assert "error: the cpu-mixed engines are beyond the budget: mask IoU with fp32 loses" in told
    assert os.listdir(bundle / "engines") == []
    code, printed, _ = run(*arguments, "--force")
    assert code == 0 and "kept by --force" in printed and printed.splitlines()[-1].endswith("--force")
    picture = next((calib_scenes / "images").iterdir())
    command = (str(bundle), "--precision", "mixed", "--threads", "1")
    code, printed, told = run("run", *command, "--image", str(picture), "--task", "caption")
    assert code == 0 and told.startswith(
        "warning: engines cpu-mixed were kept by --force: mask IoU with fp32 loses"
    )
    assert told.count("\n") == 1 and told.rstrip().endswith("(budget IoU -0.001%)")
    code, printed, told = run("verify", *command)
    assert code == 0 and "warning: engines cpu-mixed were kept by --force" in told
    assert "refused" in printed and "5 of 5 next tokens" in printed
    out = tmp_path / "out"
    code, _, told = run(
        "eval", *command, "--data", str(calib_scenes), "--task", "refseg", "--limit", "1", "-o", str(out)
    )
    assert code == 0 and told.count("warning: engines cpu-mixed were kept by --force") == 1
    monkeypatch.setattr(benchmark, "_question", stopped)  # opened is enough
    code, _, told = run("bench", *command, "--images", str(picture), "-o", str(tmp_path / "bench"))
    assert code == 2 and told.count("warning: engines cpu-mixed were kept by --force") == 1


def test_without_a_budget_a_default_decides(calib_bundle: Bundle, recipe: Path) -> None:
    written_again(recipe, read_recipe(recipe), budget=None)
    found = gate.judge(fp32_candidate(calib_bundle, recipe))
    assert {name: loss.limit for name, loss in found.losses.items()} == {
        "iou": 0.01, "tokens": 0.02, "ciou": None,
    }  # fmt: skip
    assert found.budget == DEFAULT_TEXT


def test_regions_are_those_of_the_given_masks(
    calib_bundle: Bundle, made_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pixel decoder that finds nothing changes no token: regions are not cut from its masks."""
    empty = SimpleNamespace(numpy=lambda name: np.full((1, 96, 96), -5.0, np.float32))

    def blind(engines: Any, size: int) -> Any:
        found, decoder = checked(engines, size)
        inner = decoder._stage
        monkeypatch.setattr(decoder, "_stage", SimpleNamespace(start=lambda feeds: empty, close=inner.close))
        return found, decoder

    monkeypatch.setattr(gate, "checked", blind)
    found = gate.judge(fp32_candidate(calib_bundle, made_recipe))
    assert found.metrics["tokens"] == 1.0 and found.metrics["ciou"] == 0.0
    assert "mask IoU with fp32 loses" in found.refused


def spoiled(folder: Path, stage: str, weight: str, value: float) -> None:
    """Set one number of a weight, after the build has checked the engines."""
    model = ir.load(folder / f"{stage}.onnx")
    tensor = model.graph.initializers[weight].const_value
    assert tensor is not None
    array = tensor.numpy().copy()
    array.flat[0] = value
    model.graph.initializers[weight].const_value = ir.tensor(array, name=weight)
    save_graph(model, folder / f"{stage}.onnx")


@pytest.mark.parametrize(
    ("stage", "value", "said"),
    [
        (
            "semantic_encoder",
            np.nan,
            r"^semantic_encoder: \S+ \(\w+\) is not finite on held-out",
        ),
        ("pixel_decoder", np.inf, r"^pixel_decoder: \S+ \(\w+\) is not finite on held-out picture"),
        ("llm", np.inf, r"^llm: \S+ \(\w+\) is not finite on held-out picture \w+\.png: calibrate again"),
    ],
)
def test_the_first_tensor_that_is_not_finite_is_named(
    calib_bundle: Bundle, made_recipe: Path, tmp_path: Path, stage: str, value: float, said: str
) -> None:
    folder = Path(shutil.copytree(calib_bundle.engine_folder("cpu", "fp32"), tmp_path / "engines"))
    graph = ir.load(folder / f"{stage}.onnx").graph
    node = [n for n in graph if n.op_type == "MatMul" and n.inputs[1] and n.inputs[1].is_initializer()][3]
    assert node.inputs[1] is not None and node.inputs[1].name is not None
    spoiled(folder, stage, node.inputs[1].name, value)
    with pytest.raises(LiraError, match=said) as caught:
        gate.judge(fp32_candidate(calib_bundle, made_recipe, folder=folder))
    assert f"{node.outputs[0].name} (MatMul)" in str(caught.value)


def test_bad_held_out_folders_are_refused(calib_bundle: Bundle, recipe: Path) -> None:
    as_read, file = read_recipe(recipe), recipe / HELD_OUT / "questions.json"
    (first, *_) = read_held_out(recipe, as_read).questions

    def refusal() -> str:
        written_again(recipe, as_read)
        with pytest.raises(LiraError) as caught:
            gate.judge(fp32_candidate(calib_bundle, recipe))
        assert "\n" not in str(caught.value) and "calibrate again" in str(caught.value)
        return str(caught.value)

    write_questions(file.parent, [dataclasses.replace(first, picture="gone.png")])
    assert "asks about gone.png, which the recipe does not list" in refusal()
    write_questions(file.parent, [dataclasses.replace(first, expected=first.expected[:-1])])
    assert f"{len(first.tokens)} tokens and {len(first.tokens) - 1} of fp32" in refusal()
    file.write_text("{}")
    assert "has format version None, expected 1" in refusal()
    file.write_text('{"format_version": 1, "questions": []}')
    assert "has no questions" in refusal()
    file.unlink()
    assert "holds no held_out/questions.json" in refusal()


def test_a_missing_held_out_picture_is_named(bundle: Path, recipe: Path) -> None:
    next((recipe / HELD_OUT).glob("*.png")).unlink()
    with pytest.raises(LiraError, match=r"held_out/\w+\.png is missing; calibrate again"):
        build(bundle, recipe=recipe)
    assert not (bundle / "engines").exists()


def test_a_budget_in_masks_needs_masks(calib_bundle: Bundle, recipe: Path) -> None:
    as_read = read_recipe(recipe)
    questions = read_held_out(recipe, as_read).questions
    write_questions(recipe / HELD_OUT, [one for one in questions if not one.given])
    written_again(recipe, as_read, budget=Budget("cIoU -1%", "ciou", 0.01))
    with pytest.raises(LiraError, match=r"is in cIoU, which its held-out questions do not have; they have"):
        gate.judge(fp32_candidate(calib_bundle, recipe))


def test_nothing_in_held_out_names_a_path_of_this_machine(made_recipe: Path, calib_scenes: Path) -> None:
    text = (made_recipe / HELD_OUT / "questions.json").read_text()
    assert str(calib_scenes) not in text and "/tmp" not in text
    recipe = read_recipe(made_recipe)
    pictures = {path.name for path in (made_recipe / HELD_OUT).glob("*.png")}
    assert {f"{HELD_OUT}/{name}" for name in (*pictures, "questions.json")} < recipe.files.keys()
    originals = {path.read_bytes() for path in (calib_scenes / "images").iterdir()}
    assert all((made_recipe / HELD_OUT / name).read_bytes() in originals for name in pictures)


@pytest.fixture(scope="module")
def graphs(calib_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lira-nano lowered to fp16 for TensorRT before 10.15."""
    folder = tmp_path_factory.mktemp("graphs")
    for stage in STAGES:
        passes = tensorrt_pipeline(stage, "fp16", "decomposed")
        save_graph(apply(ir.load(calib_bundle.stage_file(stage)), passes), folder / f"{stage}.onnx")
    return folder


def test_lowered_graphs_are_judged_where_engines_cannot_run(
    calib_bundle: Bundle, made_recipe: Path, graphs: Path
) -> None:
    said: list[str] = []
    found = gate.judge(
        fp32_candidate(
            calib_bundle, made_recipe, target="tensorrt", folder=graphs, graphs=True, progress=said.append
        )
    )
    assert found.not_judged == "" and found.ran == "lowered graphs" and found.questions == 8
    assert found.metrics["tokens"] > 0.98 and found.metrics["iou"] > 0.98
    assert said and said[0].startswith("picture 1 of")


def test_graphs_that_do_not_run_are_not_judged(
    calib_bundle: Bundle, made_recipe: Path, graphs: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(graphs, tmp_path / "graphs"))
    (folder / "sefe.onnx").write_bytes(b"no graph")
    candidate = fp32_candidate(calib_bundle, made_recipe, target="tensorrt", folder=folder, graphs=True)
    found = gate.judge(candidate)
    assert found.not_judged.startswith("ONNX Runtime cannot run the lowered graphs on the CPU (")
    assert found.rows() == [("masks", f"not judged: {found.not_judged}")]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gate, "COMMAND", ("/bin/false",))
        assert gate.judge(candidate).not_judged == "its process ended with code 1"


def test_graphs_that_are_not_finite_are_refused(
    calib_bundle: Bundle, made_recipe: Path, graphs: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(graphs, tmp_path / "graphs"))
    graph = ir.load(folder / "semantic_encoder.onnx").graph
    node = next(n for n in graph if n.op_type == "MatMul" and n.inputs[1] and n.inputs[1].is_initializer())
    assert node.inputs[1] is not None and node.inputs[1].name is not None
    spoiled(folder, "semantic_encoder", node.inputs[1].name, np.nan)
    candidate = fp32_candidate(calib_bundle, made_recipe, target="tensorrt", folder=folder, graphs=True)
    with pytest.raises(LiraError, match=r"semantic_encoder: \S+ \(\w+\) is not finite on held-out picture"):
        gate.judge(candidate)


def square(where: slice) -> np.ndarray:
    mask = np.zeros((10, 10), bool)
    mask[where, where] = True
    return mask


def asked(picture: str = "a.png", **changes: Any) -> Question:
    masks = (rle.encode(square(slice(0, 4))), rle.encode(square(slice(0, 2))))
    found = Question("k", picture, False, "refseg", "x", (1, 2, 3, 4), (1, 2, 3, 5), masks, True, masks, (0,))
    return dataclasses.replace(found, **changes)


def test_agreement_counts_tokens_and_shown_masks() -> None:
    found = Agreement()
    found.add(asked(), [1, 2, 0, 5], [square(slice(0, 2)), square(slice(0, 9))])
    found.add(asked("b.png", annotated=False), [1, 2], [])
    assert (found.pictures, found.questions) == (2, 2)
    metrics = found.metrics()
    assert metrics["tokens"] == 5 / 8  # missing ones count
    assert metrics["iou"] == (4 / 16 + 0) / 2
    assert metrics["ciou"] == 4 / 32 and metrics["fp32 ciou"] == 1.0
    losses = found.losses({"iou": 0.5})
    assert losses["iou"].loss == 1 - 0.125 and not losses["iou"].accepted and losses["tokens"].accepted
    assert (losses["iou"].low, losses["iou"].high) == (0.75, 1.0)  # either picture alone


def test_the_interval_narrows_with_pictures() -> None:
    def width(count: int) -> float:
        found = Agreement()
        for number in range(count):
            chosen = [1, 2, 3, 5] if number % 2 else [1, 2, 0, 0]
            found.add(asked(f"{number}.png", shown=()), chosen, [])
        (loss,) = found.losses({}).values()
        assert loss.loss == 0.25 and loss.low < 0.25 < loss.high
        return loss.high - loss.low

    assert 1.5 < width(8) / width(32) < 2.7


def test_a_judgement_is_read_back(calib_bundle: Bundle, made_recipe: Path) -> None:
    from lira_engine.bundle import schema

    found = gate.judge(fp32_candidate(calib_bundle, made_recipe))
    again = schema.read(Judgement, json.loads(json.dumps(schema.write(found))), "it")
    assert again == found
