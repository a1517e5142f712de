"""The recorded ILVC traces, replayed token for token and mask for mask (tolerances: the golden README).

Teacher-forced: each step takes the recorded token, so that a near tie does not make later steps incomparable.
Where the recorded token is upstream's own choice, the replay's argmax must be equal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lira_engine.build import build
from lira_runtime import Answer, Lira, MaskEvent, RegionEvent
from lira_runtime.prompts import Prompt
from lira_runtime.sampling import make_sampler

PREPROCESSING = 1e-5
ENCODERS = 2e-4  # encoders, projector, language model
MASK_LOGITS = 1e-3  # they span tens


class Numbers:
    """A tokenizer whose text is the ids: the golden data has none."""

    unknown_id = None

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f" {token_id}" for token_id in ids)

    def id_of(self, token: str) -> int | None:
        return None


@dataclass
class Pass:
    past: int
    embeds: np.ndarray
    logits: np.ndarray
    hidden: np.ndarray


class RecordingLlm:
    """The LLM, with every pass recorded."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self.capacity = llm.capacity
        self.new_cache = llm.new_cache
        self.close = llm.close
        self.passes: list[Pass] = []

    def forward(self, embeds: np.ndarray, cache: Any, logit_positions: Sequence[int] = (-1,)) -> Any:
        past = cache.length
        output = self.llm.forward(embeds, cache, logit_positions)
        self.passes.append(Pass(past, embeds.copy(), output.logits.copy(), output.hidden.copy()))
        return output


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "trace_name" in metafunc.fixturenames:
        folder: Path = metafunc.config.getoption("--golden")
        names = sorted(path.stem for path in (folder / "e2e").glob("trace_*.npz"))
        assert names
        metafunc.parametrize("trace_name", names)


@pytest.fixture(scope="module", params=["portable", "cpu"])
def lira(request: pytest.FixtureRequest, golden_bundle: Path) -> Iterator[Lira]:
    if request.param != "portable":
        build(golden_bundle, target=request.param)
    with Lira.open(golden_bundle, target=request.param, tokenizer=Numbers()) as opened:
        yield opened


@dataclass
class Replay:
    trace: dict[str, np.ndarray]
    answer: Answer
    masks: list[MaskEvent]
    regions: list[RegionEvent]
    prefill: list[Pass]
    steps: list[Pass]  # the first is the last pass of the prefill


@pytest.fixture
def replay(lira: Lira, golden: Path, golden_config: dict[str, Any], trace_name: str) -> Replay:
    with np.load(golden / "e2e" / f"{trace_name}.npz", allow_pickle=False) as data:
        trace = {name: data[name] for name in data.files}
    place = int(np.flatnonzero(trace["prompt_ids"] == golden_config["image_placeholder_id"])[0])
    ids, used = trace["prompt_ids"].tolist(), trace["used_ids"].tolist()
    prompt = Prompt(
        before=tuple(ids[:place]),
        after=tuple(ids[place + 1 :]),
        stop_ids=frozenset({golden_config["special_token_ids"]["<|im_end|>"]}),
        max_new_tokens=len(used),
    )
    recorder = RecordingLlm(lira.engines.llm)
    engines = lira.engines
    lira.engines = replace(engines, llm=recorder)
    try:
        scene = lira.look(golden / "e2e" / f"{trace_name.replace('trace', 'image')}.png")
        events = list(scene.stream_prompt(prompt, make_sampler(), forced=dict(enumerate(used))))
    finally:
        lira.engines = engines
    return Replay(
        trace,
        events[-1].answer,  # type: ignore[union-attr]
        [event for event in events if isinstance(event, MaskEvent)],
        [event for event in events if isinstance(event, RegionEvent)],
        recorder.passes[:2],
        recorder.passes[1:],
    )


def close(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_golden_trace_tokens_and_positions(replay: Replay, golden_config: dict[str, Any]) -> None:
    trace, steps = replay.trace, replay.steps
    assert list(replay.answer.token_ids) == trace["used_ids"].tolist()
    ended = trace["used_ids"][-1] == golden_config["special_token_ids"]["<|im_end|>"]
    assert replay.answer.finish_reason == ("stop" if ended else "length")
    assert sum(len(step.embeds) for step in replay.prefill) == trace["in_len"][0]
    assert [step.past for step in steps[1:]] == trace["past_len"][1:].tolist()
    assert [len(step.embeds) for step in steps[1:]] == trace["in_len"][1:].tolist()


def test_golden_trace_prefix_hidden_states_and_logits(replay: Replay) -> None:
    trace, steps = replay.trace, replay.steps
    prefill = np.concatenate([step.embeds for step in replay.prefill])
    close(prefill, trace["prefill_embeds"][0], ENCODERS)
    logits = np.concatenate([step.logits for step in steps])
    close(np.concatenate([step.hidden for step in steps]), trace["last_hidden"], ENCODERS)
    close(logits, trace["logits"], ENCODERS)
    free = ~trace["forced"].astype(bool)
    np.testing.assert_array_equal(logits.argmax(axis=1)[free], trace["argmax_ids"][free])


def test_golden_trace_masks(replay: Replay) -> None:
    trace, masks = replay.trace, replay.masks
    assert len(masks) == trace["n_seg"]
    for i, event in enumerate(masks):
        step = int(trace[f"seg{i}_step"])  # the one that reads [SEG]
        assert (event.index, event.token_step) == (i, step - 1)
        close(replay.steps[step].hidden, trace[f"seg{i}_hidden"], ENCODERS)
        close(event.mask.decoder_logits, trace[f"seg{i}_mask_logits_s4"][0, 0], MASK_LOGITS)
        close(event.mask.logits, trace[f"seg{i}_mask_logits_orig"][0], MASK_LOGITS)
        np.testing.assert_array_equal(event.mask.binary, trace[f"seg{i}_mask"][0].astype(bool))


def test_golden_trace_regions(replay: Replay, lira: Lira) -> None:
    trace, regions = replay.trace, replay.regions
    assert len(regions) == trace["n_crop"]
    suffix = len(lira.manifest.tokens.region_suffix)
    for i, event in enumerate(regions):
        assert event.box_xyxy == tuple(trace[f"crop{i}_bbox_xyxy"].tolist())
        close(event.tile, trace[f"crop{i}_tile"], PREPROCESSING)
        step = int(trace[f"crop{i}_step"]) + 1
        if step == len(replay.steps):  # <image_id> was the last token: no pass read the region
            continue
        chunk = replay.steps[step].embeds
        close(chunk, trace[f"chunk_embeds_step{step}"][0], ENCODERS)
        close(chunk[1 : len(chunk) - suffix], trace[f"crop{i}_vit_embeds"][0], ENCODERS)
    taken = [replay.answer.masks[event.mask_index].binary for event in regions]
    expected = trace["final_masks"] if regions else ()
    np.testing.assert_array_equal(taken, np.asarray(expected, dtype=bool))
