"""Texts of users and data sets in matplotlib figures, drawn as they are."""

from __future__ import annotations

import logging
import textwrap
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextmanager
def as_written() -> Iterator[None]:
    """Make and save figures within this block: dollar signs start no formula, and a character that the font
    lacks is drawn as a box without a warning."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # on import it tells where its cache went
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+|Matplotlib currently does not support", UserWarning)
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches, for a PNG; call it within `as_written`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def without_glyph(texts: Iterable[str]) -> str:
    """Return the characters of `texts` that matplotlib's default font lacks, each once, in order."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_char_index
    characters = dict.fromkeys(character for text in texts for character in text)
    return "".join(c for c in characters if not c.isspace() and not known(ord(c)))


def fitted(text: str, columns: int, rows: int = 1) -> str:
    """Wrap `text` into at most `rows` lines and end a cut text with dots; fewer wide characters (CJK) fit."""
    wide = any(unicodedata.east_asian_width(character) in "WF" for character in text)
    lines = textwrap.wrap(text, columns * 2 // 5 if wide else columns, max_lines=rows, placeholder=" ...")
    return "\n".join(lines)
