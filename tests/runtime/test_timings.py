"""What an answer cost, by a clock that the test sets: each second counts once, and in its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lira_runtime.callbacks import EncodedRegion, ImageIdCallback, SegCallback
from lira_runtime.prompts import Prompt
from lira_runtime.rows import SceneRows
from lira_runtime.timings import LookTimings, TimedLlm, Timings
from lira_runtime.turns import Region


class Clock:
    now = 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    return clock


def test_a_mask_counts_once_inside_the_answer_and_after_it(clock: Clock) -> None:
    timings = Timings()

    def events() -> Iterator[str]:
        clock.now += 3  # of which 2 were waiting for a mask
        timings.note_mask(2.0)
        yield "mask"

    for _ in timings.answering(events()):
        clock.now += 100
    assert timings.total == 3
    timings.note_mask(5.0)
    assert (timings.masks, timings.total) == ([2.0, 5.0], 8)


def test_an_answer_that_is_left_or_fails_is_over(clock: Clock) -> None:
    def events() -> Iterator[str]:
        clock.now += 1
        yield "token"
        clock.now += 1
        raise ValueError

    for most in (1, 2):
        timings, stream = Timings(), None
        stream = timings.answering(events())
        next(stream)
        if most == 1:
            stream.close()  # type: ignore[attr-defined]
        else:
            with pytest.raises(ValueError):
                next(stream)
        timings.note_mask(4.0)  # after the answer, so it counts by itself
        assert timings.total == most + 4


def test_the_first_token_alone_sets_its_time(clock: Clock) -> None:
    timings = Timings(look=LookTimings(1, 2, 3, 4))

    def events() -> Iterator[int]:
        for seconds in (5, 7):
            clock.now += seconds
            yield seconds

    for _ in timings.answering(events()):
        timings.note_token()
    assert (timings.ttft, timings.total, timings.new_tokens) == (15, 22, 2)


def test_rates_are_tokens_per_second_and_per_pass(clock: Clock) -> None:
    timings = Timings(look=LookTimings(1, 2, 3, 4), new_tokens=6, accepted=2, decode=[0.5, 0.25, 0.25])
    timings.note_mask(5.0)
    assert timings.decode_tokens_per_second == 3
    assert timings.tokens_per_pass == 1.5
    assert timings.end_to_end_tokens_per_second == 6 / 15
    nothing = Timings()
    assert nothing.decode_tokens_per_second == nothing.tokens_per_pass == 0
    assert nothing.end_to_end_tokens_per_second == 0


def test_json_has_every_value_under_its_own_name() -> None:
    timings = Timings()
    names = [field.name for field in fields(Timings) if field.name != "look" and field.name[0] != "_"]
    for number, name in enumerate(reversed(names), 1):  # so that there are more tokens than accepted ones
        listed = isinstance(getattr(timings, name), list)
        setattr(timings, name, [number / 4] if listed else number)
    timings.look = LookTimings(100, 200, 300, 400)
    found = timings.as_dict()
    assert [found[name] for name in names] == [getattr(timings, name) for name in names]
    assert found["look"] == vars(timings.look) and found["total"] == timings.total == 1000
    for rate in ("tokens_per_pass", "decode_tokens_per_second", "end_to_end_tokens_per_second"):
        assert found[rate] == getattr(timings, rate) > 0


def test_passes_are_prefill_then_steps_and_regions(clock: Clock) -> None:
    timings = Timings()

    class Llm:
        def forward(self, embeds: np.ndarray, cache: Any, logit_positions: Any) -> None:
            clock.now += len(embeds)

    llm = TimedLlm(Llm(), timings)  # type: ignore[arg-type]
    for rows, tokens in ((7, 0), (2, 0), (1, 1), (4, 1), (1, 2)):
        timings.new_tokens = tokens
        llm.forward(np.zeros((rows, 8), np.float32), None)  # type: ignore[arg-type]
    assert (timings.prefill_tokens, timings.prefill) == (9, 9)
    assert (timings.decode, timings.region_prefill) == ([1, 1], [4])


def test_a_region_costs_its_crop_and_its_encoder_without_the_mask(
    fakes: SimpleNamespace, clock: Clock
) -> None:
    def decoded(feeds: Any) -> dict[str, np.ndarray]:
        clock.now += 2
        return {"mask_logits": np.ones((1, 4, 4), np.float32)}

    def encoded(mask: np.ndarray) -> EncodedRegion:
        clock.now += 5
        return EncodedRegion((0, 0, 4, 4), np.zeros((1, 3, 8, 8), np.float32), np.zeros((3, 8), np.float32))

    timings = Timings()
    seg = SegCallback(fakes.FakeStage(decoded), {}, (4, 4), timings)
    seg.on_consumed(fakes.FakeLlm().forward(fakes.embed([9]), fakes.FakeCache(9)), 0)
    ImageIdCallback(seg, encoded, (5,), fakes.embed([5]), timings).on_chosen(1)
    assert (timings.masks, timings.regions) == ([2], [5])


def test_a_region_of_an_earlier_turn_costs_its_encoder(fakes: SimpleNamespace, clock: Clock) -> None:
    def encoded(mask: np.ndarray) -> np.ndarray:
        clock.now += 5
        return np.full((3, fakes.WIDTH), -1, np.float32)

    image = np.full((4, fakes.WIDTH), -1, np.float32)
    rows, timings = SceneRows(image, 3, fakes.embed, encoded), Timings()
    assert rows.nbytes == image.nbytes
    prompt = Prompt((1,), (2,), frozenset(), 9, history=(7, Region((2, 3), "42")))
    llm = fakes.FakeLlm()
    rows.read_up_to_question(prompt, llm, llm.new_cache, timings)
    assert timings.regions == [5] and rows.nbytes == image.nbytes + 9 * 4 * fakes.WIDTH
    rows.free()
    assert rows.nbytes == 0 and rows.image.base is None  # a view would keep them all
