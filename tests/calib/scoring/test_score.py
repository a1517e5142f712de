"""Scores of recipes: equal to what engines answer, and made by running only what a recipe changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lira_calib.data.sequences import Sequence
from lira_calib.runs.layered import LayeredLlm
from lira_calib.runs.stage_runs import LoweredStage
from lira_calib.scoring import score as scoring
from lira_calib.scoring.score import Score, Scorer, SequenceScore
from lira_calib.scoring.whole_llm import WholeLlm
from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.recipe import Form, Smoothing, StageRecipe, smoothing_key
from lira_engine.errors import LiraError
from lira_engine.lowering.weights import constant_matmuls
from lira_runtime import Lira

INT4 = Form("int4", 32)
DYNAMIC = Form("w8a8", range=(-4.0, 4.0), dynamic=True)


def recipe(bundle: Bundle, stage: str, form: Form) -> StageRecipe:
    """Every matmul of a stage in one form."""
    model = ir.load(bundle.stage_file(stage))
    return StageRecipe({one.name: form for one in constant_matmuls(model.graph)})


@pytest.fixture(scope="module")
def scorer(calib_bundle: Bundle, recorded: list[Sequence], calib_work: Path) -> Iterator[Scorer]:
    with Scorer(calib_bundle, recorded, calib_work, threads=1) as made:
        yield made


@pytest.fixture(scope="module")
def int4(scorer: Scorer, calib_bundle: Bundle) -> Score:
    return scorer.score({"llm": recipe(calib_bundle, "llm", INT4)})


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that were run, in order."""
    stages: list[str] = []

    def noted(name: str, run: Callable) -> Callable:
        def wrapper(self: object, *arguments: object) -> object:
            stages.append(name or self.name)  # type: ignore[attr-defined]
            return run(self, *arguments)

        return wrapper

    monkeypatch.setattr(LoweredStage, "run", noted("", LoweredStage.run))
    monkeypatch.setattr(WholeLlm, "outputs", noted("llm", WholeLlm.outputs))
    return stages


def test_fp32_agrees_with_itself(scorer: Scorer, recorded: list[Sequence]) -> None:
    found = scorer.score({})
    assert found.tokens == found.agreed == sum(len(one.tokens) for one in recorded)
    assert found.hidden_error == 0 and found.nonfinite is None
    assert set(found.mask_ious) == {1.0}
    assert len(found.mask_ious) == sum(len(one.shown) for one in recorded)
    assert found.metric("ciou") == found.reference("ciou") > 0.3  # lira-nano has learnt something
    assert found.metric("iou") == found.metric("tokens") == found.reference("tokens") == 1.0


def test_the_reference_is_what_the_engines_answer(
    scorer: Scorer, calib_bundle: Bundle, recorded: list[Sequence]
) -> None:
    # Referring segmentation has no region before its mask, so a free answer has the forced one's mask.
    sequence = next(one for one in recorded if one.item.task == "refseg")
    number = recorded.index(sequence)
    with Lira.open(calib_bundle.path, threads=1) as lira:
        answer = lira.look(sequence.request.image).ask(task="refseg", expression=sequence.item.text)
        mask = answer.masks[0].binary
    truth = sequence.truth[0]
    assert truth is not None
    one = scorer.score({}).sequences[number]
    assert one.intersections == (int((mask & truth).sum()),)
    assert one.unions == (int((mask | truth).sum()),)


def test_int4_costs_little_and_is_measured(int4: Score) -> None:
    assert 0.005 < int4.hidden_error < 0.3
    assert 0.8 < int4.metric("tokens") <= 1.0
    assert 0.9 < int4.metric("iou") < 1.0
    assert int4.reference_intersections != int4.intersections


def test_scores_are_deterministic(scorer: Scorer, calib_bundle: Bundle, int4: Score) -> None:
    assert scorer.score({"llm": recipe(calib_bundle, "llm", INT4)}) == int4


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("llm", {"llm", "pixel_decoder"}),
        ("pixel_decoder", {"pixel_decoder"}),
        ("sefe", {"sefe", "llm", "pixel_decoder"}),
        ("semantic_encoder", {"semantic_encoder", "sefe", "llm", "pixel_decoder"}),
        ("pixel_encoder", {"pixel_encoder", "sefe", "llm", "pixel_decoder"}),
    ],
)
def test_only_changed_stages_and_those_behind_them_run(
    scorer: Scorer, calib_bundle: Bundle, ran: list[str], stage: str, expected: set[str]
) -> None:
    scorer.score({})
    assert ran == []
    form = INT4 if stage in ("llm", "pixel_decoder") else DYNAMIC
    found = scorer.score({stage: recipe(calib_bundle, stage, form)})
    assert set(ran) == expected
    assert found.nonfinite is None
    if stage != "pixel_decoder":  # the masks come behind the hidden states
        assert found.hidden_error > 0
    assert found.metric("iou") < 1.0


def test_a_changed_encoder_may_move_rows(scorer: Scorer, calib_bundle: Bundle) -> None:
    # A range this narrow ruins the pixel encoder: other queries are valid, so the rows of tokens move.
    ruin = recipe(calib_bundle, "pixel_encoder", Form("w8a8", range=(-0.01, 0.01)))
    found = scorer.score({"pixel_encoder": ruin})
    assert found.agreed < found.tokens == scorer.score({}).tokens
    assert found.metric("iou") < 0.9
    assert found.hidden_error > 0.01
    assert not list(scorer._work.glob("candidate-*")) and not list(scorer._work.glob("lowered-llm*"))


def test_layer_by_layer_gives_the_score_of_the_whole(
    calib_bundle: Bundle, recorded: list[Sequence], calib_work: Path, int4: Score
) -> None:
    layered = LayeredLlm(calib_bundle, calib_work / "layers", threads=1)
    with Scorer(calib_bundle, recorded, calib_work, threads=1, llm=layered) as scorer:
        found = scorer.score({"llm": recipe(calib_bundle, "llm", INT4)})
    assert found.agreed == int4.agreed
    assert found.hidden_error == pytest.approx(int4.hidden_error, rel=1e-4)
    np.testing.assert_allclose(found.mask_ious, int4.mask_ious, atol=1e-3)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(
    ("stage", "expected"), [("llm", "llm."), ("pixel_encoder", "pixel_encoder."), ("sefe", "sefe.")]
)
def test_values_that_are_not_finite_are_named(
    scorer: Scorer, calib_bundle: Bundle, stage: str, expected: str
) -> None:
    from lira_calib.methods.smoothing import smoothing_groups

    group = smoothing_groups(ir.load(calib_bundle.stage_file(stage)))[0]
    one = Smoothing(group.name, tuple(group.divided), tuple(group.multiplied))
    model = ir.load(calib_bundle.stage_file(stage))
    shape = model.graph.initializers[one.multiplied[0]].shape
    assert shape is not None
    scale = np.full(int(shape[0]), 1e-42, np.float32)  # what is divided by it overflows
    found = scorer.score({stage: StageRecipe(smoothing=(one,), tensors={smoothing_key(one.name): scale})})
    assert found.nonfinite is not None and found.nonfinite.startswith(expected)
    assert found.metric("ciou") == found.metric("tokens") == 0.0
    assert Score.from_dict(json.loads(json.dumps(found.as_dict(), allow_nan=False))) == found


def test_damaged_weights_are_refused(
    calib_bundle: Bundle, recorded: list[Sequence], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_nonfinite", lambda found: "llm.hidden_states")
    with (
        Scorer(calib_bundle, recorded, tmp_path, threads=1) as scorer,
        pytest.raises(
            LiraError, match=r"llm\.hidden_states is not finite in fp32, for .*weights are damaged"
        ),
    ):
        scorer.score({})
    assert not list(tmp_path.glob("reference-*/*"))


def test_decoder_feeds_make_the_reference_masks(scorer: Scorer, calib_bundle: Bundle) -> None:
    feeds = list(scorer.decoder_feeds())
    assert len(feeds) == sum(len(one.seg_rows) for one in scorer.sequences)
    wanted = calib_bundle.manifest.stages["pixel_decoder"].inputs.keys()
    assert all(inputs.keys() == wanted for _, inputs in feeds)
    sequence = next(one for one in scorer.sequences if one.seg_rows.size)
    _, inputs = next(one for one in feeds if one[0] == sequence.key)
    with Lira.open(calib_bundle.path, threads=1) as lira:
        logits = lira.engines.pixel_decoder.run(inputs)["mask_logits"][0]
    np.testing.assert_allclose(logits, scorer._reference(sequence).mask_logits[0], atol=1e-5)


def test_a_score_survives_json_and_resamples(int4: Score) -> None:
    assert Score.from_dict(json.loads(json.dumps(int4.as_dict()))) == int4
    twice = int4.of([0, 0, 1])
    assert len(twice.sequences) == 3
    assert twice.tokens == 2 * int4.sequences[0].tokens + int4.sequences[1].tokens
    with pytest.raises(LiraError, match="no metric 'giou'; expected ciou, iou, tokens"):
        int4.metric("giou")


def test_metrics_are_sums_over_sequences() -> None:
    first = SequenceScore("a", "refseg", 4, 3, (0.5,), (10,), (20,), (16,), (20,), 1.0, 4.0)
    second = SequenceScore("b", "gcg", 6, 6, (1.0, 0.75), (30, 0), (30, 10), (30, 5), (30, 10), 3.0, 12.0)
    score = Score((first, second))
    assert score.metric("ciou") == 40 / 60 and score.reference("ciou") == 51 / 60
    assert score.metric("iou") == 0.75 and score.metric("tokens") == 0.9
    assert score.hidden_error == 0.5
    assert Score(()).metric("ciou") == Score(()).metric("iou") == 1.0
