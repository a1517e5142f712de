"""Words of users and of data sets in matplotlib's pictures: drawn as they are, whatever they hold."""

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
    """Around all that makes and saves a figure: dollars are dollars, not mathematics, and a character that
    the font lacks is a box in the picture, not a warning on standard error."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # on import it tells where its cache went
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+|Matplotlib currently does not support", UserWarning)
        yield


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches, for a PNG; within `as_written`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def without_glyph(texts: Iterable[str]) -> str:
    """The characters that the font of the pictures lacks, each once, in order."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_char_index
    characters = dict.fromkeys(character for text in texts for character in text)
    return "".join(c for c in characters if not c.isspace() and not known(ord(c)))


def fitted(text: str, columns: int, rows: int = 1) -> str:
    """`text` in at most so many rows, cut with dots at the end. Of wide characters (CJK) fewer fit."""
    wide = any(unicodedata.east_asian_width(character) in "WF" for character in text)
    lines = textwrap.wrap(text, columns * 2 // 5 if wide else columns, max_lines=rows, placeholder=" ...")
    return "\n".join(lines)
