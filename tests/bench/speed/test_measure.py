"""Given tokens, recorded engines and measured answers, on lira-nano."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from lira_bench.forced import ANSWER, BETWEEN, LEAD, PHRASES, forced_tokens
from lira_bench.sample_image import sample_image
from lira_bench.speed.ablation import VARIANTS, ablation, pixel_encoder_alone, without_fusion
from lira_bench.speed.measure import Run, measure, question
from lira_bench.speed.record import Mark, RecordedStage, Recorder, Span, recorded
from lira_bench.speed.summary import stage_figures
from lira_bench.speed.traffic import cache_bytes, llm_file, weight_bytes
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import TensorSpec
from lira_engine.engines.runner import Feeds, Stage
from lira_engine.errors import LiraError
from lira_runtime import Lira


@pytest.fixture(scope="module")
def lira(accuracy_bundle: Path) -> Iterator[Lira]:
    with Lira.open(accuracy_bundle) as opened:
        yield opened


def forced_run(lira: Lira, task: str, ilvc: str = "on", change: object = None) -> Run:
    recorder = Recorder()
    engines = lira.engines
    lira.engines = recorded(engines, recorder)
    try:
        if change is not None:
            lira.engines = change(lira.engines, recorder)  # type: ignore[operator]
        text = {"refseg": "the object", "gcg": None, "vqa": "What is it?"}[task]
        asked = question(lira, task, text, ilvc, forced=True)  # type: ignore[arg-type]
        return measure(lira, recorder, sample_image(), asked)
    finally:
        lira.engines = engines


def stages(run: Run) -> list[str]:
    """Return the stages in order, without consecutive repeats."""
    names = [span.stage for span in sorted(run.spans, key=lambda span: span.start)]
    return [name for name, before in zip(names, [None, *names], strict=False) if name != before]


def rows(run: Run, stage: str) -> list[int]:
    return [span.rows for span in run.spans if span.stage == stage]


def test_given_tokens_have_the_form_of_trained_answers(lira: Lira) -> None:
    tokens, encode = lira.manifest.tokens, lira.tokenizer.encode
    end = tokens.eos[0]
    made = {
        (task, ilvc): forced_tokens(task, tokens, lira.tokenizer, ilvc)
        for task in ("refseg", "gcg", "vqa")
        for ilvc in (True, False)
    }
    assert made["refseg", True] == [*encode(LEAD), tokens.seg, tokens.image_id]
    assert made["refseg", False] == [*encode(LEAD), tokens.seg, end]
    assert made["vqa", True] == made["vqa", False] == [*encode(ANSWER), end]
    first = [tokens.seg, tokens.image_id, *encode(PHRASES[0]), tokens.p_end, tokens.seg, *encode(BETWEEN)]
    assert made["gcg", True][: len(first)] == first
    assert made["gcg", True].count(tokens.image_id) == 3 and made["gcg", True][-1] == end
    first = [tokens.p, *encode(PHRASES[0]), tokens.p_end, tokens.seg]
    assert made["gcg", False][: len(first)] == first
    assert tokens.image_id not in made["gcg", False] and made["gcg", False].count(tokens.seg) == 3
    with pytest.raises(LiraError, match="no schedule for task 'caption'; expected one of refseg, gcg, vqa"):
        forced_tokens("caption", tokens, lira.tokenizer)


def test_a_referring_segmentation_runs_these_stages(lira: Lira) -> None:
    run = forced_run(lira, "refseg")
    look = ["preprocess", "semantic_encoder", "pixel_encoder", "sefe"]
    assert stages(run) == [*look, "prefill", "decode", "pixel_decoder"]
    tokens = len(lira.tokenizer.encode(LEAD)) + 2
    assert run.new_tokens == tokens == len([mark for mark in run.marks if mark.kind == "token"])
    assert rows(run, "decode") == [1] * (tokens - 1)
    assert (run.masks, run.regions, run.finish_reason) == (1, (), "stop")
    assert len(run.token_gaps()) == tokens - 1
    contexts = [span.context for span in run.spans if span.stage == "decode"]
    assert contexts == list(range(sum(rows(run, "prefill")) + 1, sum(rows(run, "prefill")) + tokens))
    # What was noted lies inside the answer, and does not overlap: one stage runs at a time.
    spans = sorted(run.spans, key=lambda span: span.start)
    assert all(a.start + a.lasted <= b.start + 1e-6 for a, b in pairwise(spans))
    assert 0 < sum(span.seconds for span in spans) <= run.total * 1.05
    assert run.ttft < run.total


def test_drafted_rows_are_of_the_pass_that_reads_them(lira: Lira) -> None:
    plain = forced_run(lira, "gcg")
    drafted = forced_run(lira, "gcg", change=lambda engines, _: replace(engines, draft_costs=(0.6, 0.8, 1.0)))
    assert (plain.drafted, plain.accepted, plain.tokens_per_pass) == (0, 0, 1.0)
    assert drafted.new_tokens == plain.new_tokens and 0 < drafted.accepted <= drafted.drafted
    passes = [span for span in drafted.spans if span.stage in ("decode", "region_prefill")]
    assert len(passes) + 1 == drafted.new_tokens - drafted.accepted  # the prompt's pass chooses one, too
    assert len(rows(drafted, "region_prefill")) == len(rows(plain, "region_prefill")) == 3
    assert {*rows(drafted, "decode")} > {1}
    assert drafted.tokens_per_pass == drafted.new_tokens / (len(passes) + 1)


def test_a_grounded_description_runs_these_stages(lira: Lira) -> None:
    run = forced_run(lira, "gcg")
    assert stages(run)[-4:] == ["pixel_decoder", "region_encode", "region_prefill", "decode"]
    suffix = len(lira.manifest.tokens.region_suffix)
    assert rows(run, "region_prefill") == [1 + lira.manifest.model.tokens_per_tile + suffix] * 3
    assert len(run.regions) == len(run.seconds("region_encode")) == 3
    kinds = [mark.kind for mark in run.marks]
    assert (kinds.count("mask"), kinds.count("region")) == (6, 3)
    assert run.masks == 3  # the closing [SEG] of a phrase repeats its mask: never looked at, never decoded


def test_the_model_may_choose_its_tokens(lira: Lira) -> None:
    asked = question(lira, "refseg", "the red ball", "auto", forced=False)
    recorder = Recorder()
    run = measure(lira, recorder, sample_image(), asked)
    assert asked.forced is None and run.finish_reason in ("stop", "length")


def test_without_fusion_the_prefix_has_only_tiles(lira: Lira) -> None:
    full, without = (forced_run(lira, "gcg", change=change) for change in (None, without_fusion))
    model = lira.manifest.model
    queries = rows(full, "prefill")[0] - rows(without, "prefill")[0] - model.num_cells
    assert 0 <= queries <= model.num_queries
    assert "sefe" not in stages(without) and "pixel_encoder" in stages(without)
    assert len(without.regions) == 3
    # All rows but text and the two separators are the tile's.
    asked = question(lira, "gcg", None, "on", forced=True)
    assert rows(without, "prefill")[0] == len(asked.prompt.before) + model.tokens_per_tile + 2


def test_with_the_pixel_encoder_alone_tiles_are_not_encoded(lira: Lira) -> None:
    full, without = (forced_run(lira, "gcg", change=change) for change in (None, pixel_encoder_alone))
    assert rows(full, "prefill")[0] - rows(without, "prefill")[0] == lira.manifest.model.tokens_per_tile
    assert not {"semantic_encoder", "sefe"} & set(stages(without))
    assert len(without.seconds("region_encode")) == 3  # ILVC has its encoder


def test_without_ilvc_no_region_is_encoded(lira: Lira) -> None:
    run = forced_run(lira, "gcg", ilvc="off")
    assert run.regions == () and not {"region_encode", "region_prefill"} & set(stages(run))
    assert run.masks == 3


def a_run(rate: float, total: float, tokens: int = 10) -> Run:
    spans = (Span("decode", 1.0, 0.1, 1, 50),)
    marks = (Mark("token", 1.0, "a"), Mark("token", 1.5, "b"))
    return Run("x.png", (4, 3), spans, marks, tokens, 1.0, total, rate, tokens / total, (), 1, "stop")


def test_differences_are_taken_round_by_round() -> None:
    runs = {variant.name: [a_run(10, 2), a_run(30, 1)] for variant in VARIANTS}
    runs["no-ilvc"] = [a_run(11, 1), a_run(32, 1)]
    runs["vqa"] = [a_run(5, 2), a_run(5, 2)]
    found = {row["name"]: row for row in ablation(runs)}
    assert "decode_tokens_per_s_difference" not in found["full"]
    assert found["full"]["decode_tokens_per_s"] == 20
    assert found["no-ilvc"]["decode_tokens_per_s_difference"] == 1.5
    assert found["no-ilvc"]["end_to_end_tokens_per_s_difference"] == 2.5  # of 5 and 0
    assert found["no-sefe-tiles"]["decode_tokens_per_s_difference"] == 0
    assert found["vqa-no-ilvc"]["decode_tokens_per_s_difference"] == 15
    paper = {name: row["paper_difference"] for name, row in found.items()}
    assert paper == {
        "full": None,
        "no-sefe-tiles": 1.8,
        "no-sefe-pixels": 1.8,
        "no-ilvc": 1.3,
        "vqa": None,
        "vqa-no-ilvc": 0.0,
    }


def test_the_time_to_start_a_pass_counts_but_is_not_drawn() -> None:
    class Slow(Stage):
        name = "pixel_encoder"
        input_specs = output_specs = {"tokens": TensorSpec("float32", (1,))}  # noqa: RUF012

        def start(self, feeds: Feeds) -> Any:
            time.sleep(0.02)
            return SimpleNamespace(numpy=lambda name: time.sleep(0.01))

    recorder = Recorder()
    begun = RecordedStage(Slow(), recorder).start({})
    with recorder.span("semantic_encoder"):
        pass
    begun.numpy("tokens")
    begun.numpy("tokens")  # there already
    between, waited = recorder.spans
    assert between.earlier == 0 and waited.start >= between.start + between.lasted
    assert waited.earlier >= 0.02 and waited.lasted >= 0.01
    assert waited.seconds == pytest.approx(waited.earlier + waited.lasted)


def test_tiles_of_one_pass_count_as_those_of_several() -> None:
    class Encoder(Stage):
        name = "semantic_encoder"
        input_specs = output_specs = {"features": TensorSpec("float32", (1,))}  # noqa: RUF012

        def start(self, feeds: Feeds) -> Any:
            return SimpleNamespace(numpy=lambda name: np.zeros(1))

    counts = []
    for passes in ([1, 1, 1], [3]):
        recorder = Recorder()
        for tiles in passes:
            RecordedStage(Encoder(), recorder).run({"pixel_values": np.zeros((tiles, 3, 4, 4))})
        recorder.phase = "answer"
        RecordedStage(Encoder(), recorder).run({"pixel_values": np.zeros((1, 3, 4, 4))})
        found = stage_figures([SimpleNamespace(spans=recorder.spans)])  # type: ignore[list-item]
        counts.append((found["semantic_encoder"]["count"], found["region_encode"]["count"]))
    assert counts == [(3, 1), (3, 1)]


def test_a_failing_stage_leaves_no_span() -> None:
    class Failing(Stage):
        name = "sefe"
        input_specs = output_specs = {"tokens": TensorSpec("float32", (1,))}  # noqa: RUF012

        def start(self, feeds: Feeds) -> Any:
            return SimpleNamespace(numpy=self.fail)

        def fail(self, name: str) -> None:
            raise RuntimeError

    recorder = Recorder()
    with pytest.raises(RuntimeError):
        RecordedStage(Failing(), recorder).run({})
    assert recorder.spans == []


def test_a_decode_step_reads_all_weights_and_the_filled_cache(accuracy_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(accuracy_bundle)
    model = bundle.manifest.model
    # Projections, MLP, norms, final norm, head: the architecture's own count.
    kv = model.num_kv_heads * model.head_dim
    layer = model.hidden_size * (2 * model.hidden_size + 2 * kv + 3 * model.intermediate_size + 2)
    parameters = model.num_layers * layer + model.hidden_size * (1 + model.vocab_size)
    assert weight_bytes(llm_file(bundle, "cpu", "fp32")) == pytest.approx(4 * parameters, rel=1e-3)
    # Exported in half precision, as the checkpoint has them; norms stay wide.
    assert weight_bytes(llm_file(bundle, "portable", "fp32")) == pytest.approx(2 * parameters, rel=1e-2)
    # Half a byte and a scale of four bytes for 32 of them; norms and what does not fit blocks stays wide.
    ratio = weight_bytes(llm_file(bundle, "cpu", "int4")) / (4 * parameters)
    assert 0.625 / 4 < ratio < 0.4
    assert cache_bytes(llm_file(bundle, "cpu", "fp32"), model, 10) == 10 * model.num_layers * 2 * kv * 4
    eight_bits = onnx.load(llm_file(bundle, "cpu", "int4"), load_external_data=False)
    for tensor in eight_bits.graph.input:
        if tensor.name.startswith(("key_cache", "value_cache")):
            tensor.type.tensor_type.elem_type = onnx.TensorProto.INT8
    onnx.save(eight_bits, tmp_path / "llm.onnx")
    assert cache_bytes(tmp_path / "llm.onnx", model, 10) == 10 * model.num_layers * 2 * kv
