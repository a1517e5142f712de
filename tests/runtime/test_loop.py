"""The loop follows Algorithm 1 and upstream's order of steps, with a scripted LLM."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lira_runtime.events import EndEvent, LoopEvent, TokenEvent
from lira_runtime.loop import TokenCallback, generate


class Diary(TokenCallback):
    """Notes its calls; appends `rows` embeddings of value `value` after its token."""

    def __init__(self, rows: int | None = None, value: float = 50) -> None:
        self.rows = rows
        self.value = value
        self.chosen: list[int] = []
        self.consumed: list[tuple[int, float]] = []  # step, first channel of the hidden state

    def on_chosen(self, step: int) -> tuple[Sequence[LoopEvent], np.ndarray | None]:
        self.chosen.append(step)
        appended = None if self.rows is None else np.full((self.rows, 8), self.value, dtype=np.float32)
        return [TokenEvent(-1, step, "chosen")], appended

    def on_consumed(self, output: Any, step: int) -> Sequence[LoopEvent]:
        self.consumed.append((step, float(output.hidden[-1, 0])))
        return [TokenEvent(-2, step, "consumed")]


def run(
    fakes: SimpleNamespace, llm: Any, callbacks: dict[int, TokenCallback], **options: Any
) -> tuple[list[LoopEvent], str]:
    """Answer a prompt of two tokens; return the events before the last one, and that one's reason."""
    options = {"stop_ids": {fakes.EOS}, "max_new_tokens": 20, "cache": llm.new_cache(), **options}
    prompt = fakes.embed([1, 2])
    choose = lambda logits: int(np.argmax(logits))  # noqa: E731
    *events, end = generate(
        llm, prompt=prompt, embed=fakes.embed, choose=choose, callbacks=callbacks, **options
    )
    assert isinstance(end, EndEvent) and not any(isinstance(event, EndEvent) for event in events)
    return events, end.reason


def test_mask_belongs_to_the_pass_that_reads_seg(fakes: SimpleNamespace) -> None:
    seg = Diary()
    llm = fakes.FakeLlm([9, fakes.SEG, 10, fakes.EOS])  # pass 1 predicts [SEG], pass 2 reads it
    _, reason = run(fakes, llm, {fakes.SEG: seg})
    assert seg.chosen == [1]
    assert seg.consumed == [(1, 2.0)]
    assert reason == "stop"


def test_seg_chosen_at_the_last_step_makes_no_mask(fakes: SimpleNamespace) -> None:
    seg = Diary()
    _, reason = run(fakes, fakes.FakeLlm([9, fakes.SEG, 10]), {fakes.SEG: seg}, max_new_tokens=2)
    assert (seg.chosen, seg.consumed, reason) == ([1], [], "length")


def test_token_then_mask_then_region(fakes: SimpleNamespace) -> None:
    callbacks = {fakes.SEG: Diary(), fakes.IMAGE_ID: Diary(rows=3)}
    events, _ = run(fakes, fakes.FakeLlm([fakes.SEG, fakes.IMAGE_ID, 9]), callbacks)
    seen = [(event.token_id, event.step) for event in events if isinstance(event, TokenEvent)]
    assert seen == [
        (fakes.SEG, 0),
        (-1, 0),  # [SEG] chosen
        (fakes.IMAGE_ID, 1),
        (-2, 0),  # [SEG] consumed, by the pass that chose <image_id>
        (-1, 1),  # <image_id> chosen
        (9, 2),
        (-2, 1),  # <image_id> consumed
        (fakes.EOS, 3),
    ]


def test_appended_embeddings_follow_the_token_in_one_pass(fakes: SimpleNamespace) -> None:
    llm = fakes.FakeLlm([fakes.IMAGE_ID, 9])
    region = Diary(rows=3)
    run(fakes, llm, {fakes.IMAGE_ID: region})
    assert [len(chunk) for chunk in llm.passes] == [2, 4, 1]
    assert llm.passes[1][:, 0].tolist() == [fakes.IMAGE_ID, 50, 50, 50]
    assert region.consumed == [(0, 1.0)]  # the output is that of the chunk's last position


def test_a_callback_may_append_nothing(fakes: SimpleNamespace) -> None:
    llm = fakes.FakeLlm([fakes.IMAGE_ID, 9])
    run(fakes, llm, {fakes.IMAGE_ID: Diary(rows=None)})
    assert [len(chunk) for chunk in llm.passes] == [2, 1, 1]


def test_stop_token_ends_before_its_callback_but_after_the_mask(fakes: SimpleNamespace) -> None:
    seg, region = Diary(), Diary(rows=3)
    llm = fakes.FakeLlm([fakes.SEG, fakes.IMAGE_ID])
    _, reason = run(
        fakes, llm, {fakes.SEG: seg, fakes.IMAGE_ID: region}, stop_ids={fakes.EOS, fakes.IMAGE_ID}
    )
    assert seg.consumed == [(0, 1.0)]
    assert region.chosen == []  # no pass would read what it appends
    assert reason == "stop"


@pytest.mark.parametrize("capacity, tokens", [(2, 1), (3, 2), (4, 3)])
def test_a_full_cache_ends_the_answer(fakes: SimpleNamespace, capacity: int, tokens: int) -> None:
    events, reason = run(fakes, fakes.FakeLlm([9, 10, 11, 12, 13], capacity), {})
    assert (len(events), reason) == (tokens, "length")


def test_region_that_does_not_fit_ends_the_answer(fakes: SimpleNamespace) -> None:
    llm = fakes.FakeLlm([9, fakes.IMAGE_ID, 10], capacity=6)
    cache = llm.new_cache()
    events, reason = run(fakes, llm, {fakes.IMAGE_ID: Diary(rows=3)}, cache=cache)
    assert reason == "length"
    assert cache.length == 3  # prompt and one token: no row of the chunk of four was added
    assert len(events) == 3  # two tokens, and one of the callback


def test_forced_tokens_replace_the_choice_at_their_steps(fakes: SimpleNamespace) -> None:
    llm = fakes.FakeLlm([9, 10, 11, fakes.EOS])
    events, _ = run(fakes, llm, {}, forced={1: 13})
    assert [event.token_id for event in events if isinstance(event, TokenEvent)] == [9, 13, 11, fakes.EOS]
    assert llm.passes[2][0, 0] == 13
