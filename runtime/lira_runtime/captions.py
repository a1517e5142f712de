"""Coloured running text for pictures: pieces of text, wrapped into lines, drawn with Pillow's own font."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from PIL import ImageDraw, ImageFont

Color = tuple[int, int, int]
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

LINE_HEIGHT = 1.5  # in font sizes
_SMALL = 0.62  # a raised number's size, in font sizes
_SIMILAR = str.maketrans("‘’“”–—−×…\u00a0", "''\"\"---x. ")


@dataclass(frozen=True)
class Piece:
    """Text of one look. A raised piece is small, like an exponent, and stays with the word before it."""

    text: str
    color: Color
    underlined: bool = False
    raised: bool = False


@dataclass(frozen=True)
class Placed:
    """A piece on its line, `x` pixels from the left."""

    x: float
    piece: Piece


@lru_cache(maxsize=32)
def font(size: float) -> Font:
    """Pillow's own scalable font: no file to ship or to find."""
    return ImageFont.load_default(size=size)


def width(text: str, size: float) -> float:
    """Advance of one line of text in pixels."""
    return font(size).getlength(printable(text))


def printable(text: str) -> str:
    """`text` with accents and typographic signs reduced to the ASCII that the font has."""
    plain = unicodedata.normalize("NFKD", text.translate(_SIMILAR))
    return "".join(character for character in plain if not unicodedata.combining(character))


def ellipsize(text: str, size: float, limit: float) -> str:
    """`text` cut at its end, with two dots, to be at most `limit` pixels wide."""
    if width(text, size) <= limit:
        return text
    while text and width(text + "..", size) > limit:
        text = text[:-1]
    return text.rstrip() + ".."


def wrap(pieces: Iterable[Piece], size: float, limit: float) -> list[list[Placed]]:
    """Break the pieces into lines at most `limit` pixels wide; words that are wider are broken anywhere."""
    lines: list[list[Placed]] = [[]]
    x = 0.0
    for word in _words(pieces):
        if word[0].text == "\n":
            lines.append([])
            x = 0.0
            continue
        advance = sum(_advance(piece, size) for piece in word)
        if word[0].text.isspace():
            if lines[-1]:
                lines[-1].append(Placed(x, word[0]))
                x += advance
            continue
        if x + advance > limit and lines[-1]:
            if lines[-1][-1].piece.text.isspace():
                lines[-1].pop()
            lines.append([])
            x = 0.0
        if advance > limit:
            word = [replace(piece, text=letter) for piece in word for letter in piece.text]
        for piece in word:
            step = _advance(piece, size)
            if x + step > limit and lines[-1]:
                lines.append([])
                x = 0.0
            lines[-1].append(Placed(x, piece))
            x += step
    return lines


def draw_lines(
    draw: ImageDraw.ImageDraw, lines: list[list[Placed]], left: float, top: float, size: float
) -> None:
    """Draw wrapped lines; the block is len(lines) * LINE_HEIGHT * size pixels high."""
    for row, line in enumerate(lines):
        baseline = top + (row + 0.5) * LINE_HEIGHT * size + 0.35 * size
        for placed in line:
            piece, x = placed.piece, left + placed.x
            raise_by = 0.38 * size if piece.raised else 0.0
            look = font(size * _SMALL if piece.raised else size)
            draw.text((x, baseline - raise_by), printable(piece.text), piece.color, look, anchor="ls")
            if piece.underlined and not piece.raised:
                below = baseline + 0.16 * size
                box = (x, below, x + _advance(piece, size), below + 0.07 * size)
                draw.rectangle(box, fill=piece.color)


def _advance(piece: Piece, size: float) -> float:
    if piece.raised:
        return width(piece.text, size * _SMALL) + 0.08 * size
    return width(piece.text, size)


def _words(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """Words (of one or more pieces), blanks and line breaks, in order."""
    words: list[list[Piece]] = []
    open_word = False
    for piece in pieces:
        for part in re.findall(r"\n|[^\S\n]+|\S+", piece.text):
            fragment = replace(piece, text=part)
            if part.isspace():
                words.append([fragment])
            elif open_word:
                words[-1].append(fragment)
            else:
                words.append([fragment])
            open_word = not part.isspace()
    return words
