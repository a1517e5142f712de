"""What the server remembers of its answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lira_runtime.masks import Mask
from lira_runtime.prompts import Question
from lira_runtime.turns import Region, Turn
from lira_serve.answering import mask_as_dict
from lira_serve.asked import Asked, Exchange
from lira_serve.turns import TurnMemory

ASKED = Asked(Image.new("RGB", (1, 1)), "a" * 64, Question("what?"), "what?")
FIRST = Turn("what?", (7, 8))
LATER = replace(ASKED, text="and now?", history=(Exchange("what?", "a ball"),))


def test_an_answer_is_known_again_by_all_that_was_said() -> None:
    memory = TurnMemory()
    memory.remember(ASKED, "a ball", FIRST)
    assert memory.history(LATER) == ((FIRST,), 0)
    second = Turn("and now?", (9,))
    memory.remember(LATER, "a cat", second)
    third = replace(LATER, history=(*LATER.history, Exchange("and now?", "a cat")))
    assert memory.history(third) == ((FIRST, second), 0)


@pytest.mark.parametrize(
    "other",
    [
        replace(LATER, history=(Exchange("what?", "a bat"),)),
        replace(LATER, history=(Exchange("what", "a ball"),)),
        replace(LATER, digest="b" * 64),
        replace(LATER, system="Be brief."),
    ],
)
def test_anything_else_is_read_as_text(other: Asked) -> None:
    memory = TurnMemory()
    memory.remember(ASKED, "a ball", FIRST)
    said = other.history[0]
    assert memory.history(other) == ((Turn(said.question, said.answer),), 1)


def test_a_changed_turn_makes_those_behind_it_unknown() -> None:
    memory = TurnMemory()
    memory.remember(ASKED, "a ball", FIRST)
    memory.remember(LATER, "a cat", Turn("and now?", (9,)))
    changed = replace(LATER, history=(Exchange("what?", "a bat"), Exchange("and now?", "a cat")))
    assert memory.history(changed)[1] == 2


def test_the_least_recently_used_goes_first() -> None:
    memory = TurnMemory(most_bytes=10_000)
    turn = Turn("q", (Region((10, 10), "0" * 1500),))
    asked = [replace(ASKED, digest=str(number) * 64) for number in range(3)]
    for one in asked[:2]:
        memory.remember(one, "a ball", turn)
    follow = [replace(LATER, digest=one.digest) for one in asked]
    assert memory.history(follow[0])[1] == 0  # used again
    memory.remember(asked[2], "a ball", turn)
    assert [memory.history(one)[1] for one in follow] == [0, 1, 0]
    assert 8000 < memory.nbytes <= 10_000


def test_remembering_again_counts_once() -> None:
    memory = TurnMemory()
    for _ in range(3):
        memory.remember(ASKED, "a ball", FIRST)
    once = memory.nbytes
    memory.remember(replace(ASKED, digest="b" * 64), "a ball", FIRST)
    assert memory.nbytes == 2 * once


def test_answers_in_the_same_words_are_told_apart_by_their_names() -> None:
    memory = TurnMemory()
    masked = Turn("Describe it with masks.", (7, Region((4, 4), "8"), 8))
    plain = Turn("Describe it.", (7, 8))
    names = [memory.remember(ASKED, "a ball", turn) for turn in (masked, plain)]
    assert memory.history(LATER) == ((plain,), 0)  # the last one
    for name, turn in zip(names, (masked, plain), strict=True):
        named = replace(LATER, history=(Exchange("what?", "a ball", name),))
        assert memory.history(named) == ((turn,), 0)


def test_a_name_is_no_way_to_another_picture() -> None:
    memory = TurnMemory()
    name = memory.remember(ASKED, "a ball", FIRST)
    other = replace(LATER, digest="b" * 64, history=(Exchange("what?", "a ball", name),))
    assert memory.history(other)[1] == 1


def test_an_unknown_name_leaves_what_was_said() -> None:
    memory = TurnMemory()
    memory.remember(ASKED, "a ball", FIRST)
    for name in ("turn-0", "", "a" * 64):
        named = replace(LATER, history=(Exchange("what?", "a ball", name),))
        assert memory.history(named) == ((FIRST,), 0)


def test_a_mask_that_was_sent_is_not_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = Mask(lambda: np.eye(8, dtype=np.float32) - 0.5, 20, 20)
    turn = Turn("q", (7, Region.of(mask), 8))
    sent = mask_as_dict(0, mask)["rle"]
    monkeypatch.setattr("lira_runtime.rle.encode", lambda mask: pytest.fail("encoded again"))
    memory = TurnMemory()
    name = memory.remember(ASKED, "a ball", turn)
    ((known,), _) = memory.history(LATER)
    assert known.regions[0].counts == sent["counts"]
    plain = Turn("q", (7, Region((20, 20), sent["counts"]), 8))
    assert TurnMemory().remember(ASKED, "a ball", plain) == name
