"""Texts that end an answer, on invented texts: nothing of them is shown, and nothing else is lost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lira_runtime.answer import Phrase, PhraseEvent
from lira_serve.stops import StopTexts


def show(pieces: list[str], *stops: str) -> tuple[list[str], str]:
    """What is shown at each piece, and the whole answer's text in the end."""
    watching = StopTexts(stops)
    shown = [watching.shown(piece) for piece in pieces]
    text = "".join(pieces)
    shown.append(watching.rest(text))
    return shown, watching.cut(text)


def test_without_stop_texts_everything_is_shown_at_once() -> None:
    assert show(["a ", "red", " ball"]) == (["a ", "red", " ball", ""], "a red ball")


def test_nothing_is_shown_from_a_stop_text_on() -> None:
    assert show(["a red", " ball and", " a cat"], " ball") == (["a red", "", "", ""], "a red")


def test_what_may_become_a_stop_text_waits() -> None:
    assert show(["a b", "al", "con", "y"], "ball") == (["a ", "", "balcon", "y", ""], "a balcony")
    assert show(["a b", "al", "l!"], "ball") == (["a ", "", "", ""], "a ")


def test_what_was_held_back_comes_in_the_end() -> None:
    assert show(["a b", "al"], "ball") == (["a ", "", "bal"], "a bal")


def test_the_first_of_several_counts() -> None:
    assert show(["one two three"], "three", "two") == (["one ", ""], "one ")


def test_a_phrase_waits_until_its_text_is_shown() -> None:
    watching = StopTexts(["ball"])
    red, blue = (PhraseEvent(Phrase("", start, end, None), 0) for start, end in ((0, 3), (4, 8)))
    watching.shown("red b")
    watching.hold(red)
    assert watching.shown_phrases() == [red] and watching.shown_phrases() == []
    watching.shown("al ")
    watching.hold(blue)
    assert watching.shown_phrases() == [blue]
    watching.shown("ba")
    watching.hold(replace(blue, phrase=Phrase("", 8, 10, None)))
    assert watching.shown_phrases() == []
    assert watching.rest("red bal ba") == "ba"
    assert len(watching.shown_phrases()) == 1


def test_a_phrase_that_a_stop_text_cuts_is_not_told() -> None:
    watching = StopTexts(["e, a"])
    watching.shown("a house")
    watching.hold(PhraseEvent(Phrase("a house", 0, 7, None), 0))
    assert watching.shown_phrases() == []
    watching.shown(", a")
    assert watching.rest("a house, a") == "" and watching.shown_phrases() == []


@pytest.mark.parametrize("seed", range(20))
def test_any_cut_into_pieces_shows_the_same(seed: int) -> None:
    random = np.random.default_rng(seed)
    text = "".join(random.choice(list("ab."), 60))
    stops = ["".join(random.choice(list("ab."), length)) for length in random.integers(1, 6, 2)]
    expected = text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]
    ends = sorted(random.choice(60, 12, replace=False))
    pieces = [text[a:b] for a, b in zip([0, *ends], [*ends, 60], strict=True)]
    shown, whole = show(pieces, *stops)
    assert "".join(shown) == whole == expected
