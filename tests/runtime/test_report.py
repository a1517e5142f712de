"""What is told of an answer: its times in their units, its phrases with their masks."""

from __future__ import annotations

import numpy as np
import pytest

from lira_runtime.answer import Answer, Phrase
from lira_runtime.masks import Mask
from lira_runtime.report import as_dict, stage_line
from lira_runtime.timings import LookTimings, Timings
from lira_runtime.turns import Turn


@pytest.mark.parametrize(
    "seconds, told",
    [(0.0004, "0 ms"), (0.25, "250 ms"), (9.5, "9500 ms"), (10.0, "10.0 s"), (75.25, "75.2 s")],
)
def test_times_are_milliseconds_up_to_ten_seconds(seconds: float, told: str) -> None:
    assert f"prefill of 7 tokens {told}, " in stage_line(Timings(prefill=seconds, prefill_tokens=7))


def test_stages_are_told_with_how_often_they_ran() -> None:
    timings = Timings(
        look=LookTimings(0, 1, 2, 3), ttft=4, prefill=5, prefill_tokens=6, masks=[7], regions=[1, 2]
    )
    assert stage_line(timings) == (
        "semantic encoder 1000 ms, pixel encoder 2000 ms, SEFE 3000 ms, prefill of 6 tokens 5000 ms, "
        "first token after 4000 ms, 1 mask 7000 ms, 2 regions 3000 ms, total 6000 ms"
    )
    assert stage_line(Timings()) == "prefill of 0 tokens 0 ms, first token after 0 ms, total 0 ms"


def test_a_phrase_names_its_mask_by_number() -> None:
    masks = [Mask(lambda: np.ones((4, 4), np.float32), 4, 4) for _ in range(3)]
    phrases = [Phrase("a", 0, 1, masks[2]), Phrase("b", 2, 3, None), Phrase("c", 4, 5, masks[0])]
    answer = Answer("a b c", "", (), tuple(phrases), tuple(masks), (), "stop", Timings(), Turn("", ()))
    found = as_dict(answer)
    assert [phrase["mask"] for phrase in found["phrases"]] == [2, None, 0]
    assert len(found["masks"]) == 3 and found["timings"]["masks"] == []
