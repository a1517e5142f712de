"""Texts of users in matplotlib figures."""

from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from lira_bench.drawn_text import as_written, fitted, without_glyph

ODD = [
    "the $\\foo$ label",
    "$^$",
    "$$",
    "$",
    "a_b^{c} \\$",
    ":car:",
    "橙色",
    "نجمة",
    "नमस्ते",
    "tab\there",
    "\x07",
]


@as_written()
def drawn(text: str) -> np.ndarray:
    figure = Figure(figsize=(3, 1))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(text)
    axes.set_xticks([0], [text])
    file = BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return np.asarray(Image.open(file).convert("L"))


@pytest.mark.parametrize("text", ODD)
def test_any_text_is_drawn_without_a_warning(text: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph")  # that a font lacks
        assert drawn(text).min() < 128


def test_dollar_signs_and_blanks_are_drawn() -> None:
    assert not np.array_equal(drawn("one $two three$ four"), drawn("one twothree four"))
    assert (drawn("$x y$") < 128).sum() > (drawn("x y") < 128).sum()


def test_characters_without_a_glyph_are_named() -> None:
    assert without_glyph(["the 橙色 square", "色 \t\n", "é ß ж"]) == "橙色"
    assert without_glyph(["$\\foo$ :car:"]) == ""


def test_only_long_texts_are_cut() -> None:
    assert fitted("the $\\foo$ label", 20) == "the $\\foo$ label"
    assert fitted("one two three", 9, 2) == "one two\nthree"
    assert fitted("word " * 50, 20, 3).count("\n") == 2
    assert len(fitted("w" * 500, 20)) <= 20
    assert max(map(len, fitted("橙" * 60, 20, 9).split("\n"))) == 8
