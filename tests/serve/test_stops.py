"""Texts that end an answer, on invented texts: nothing of them is shown, and nothing else is lost."""

from __future__ import annotations

import numpy as np
import pytest

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
