"""Coloured text for pictures, wrapped into lines."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace

from PIL import ImageDraw, ImageFont

from lira_runtime import fonts

Color = tuple[int, int, int]

LINE_HEIGHT = 1.5  # in font sizes
_SMALL = 0.62  # size of a raised number, in font sizes
_LONGEST_LABEL = 500  # characters
_MOST_LINES = 400  # a picture of more lines helps nobody and takes gigabytes


@dataclass(frozen=True)
class Piece:
    """Text of one style. A raised piece is small, like an exponent, and stays with the word before it."""

    text: str
    color: Color
    underlined: bool = False
    raised: bool = False


@dataclass(frozen=True)
class Placed:
    """A piece and its place on the line, `x` pixels from the left."""

    x: float
    piece: Piece


def width(text: str, size: float) -> float:
    """Return the advance of one line of text in pixels."""
    return sum(fonts.font(size, run.file).getlength(run.text) for run in fonts.runs(text))


def draw_text(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, color: Color, size: float, anchor: str
) -> None:
    """Draw one line of any text. `anchor` as in Pillow: "ls" (left, baseline) or "lm" (left, middle)."""
    runs = fonts.runs(text)
    if len(runs) == 1:
        draw.text(at, runs[0].text, color, fonts.font(size, runs[0].file), anchor=anchor)
        return
    x, y = at
    if anchor == "lm":
        own = fonts.font(size)
        ascent, descent = own.getmetrics() if isinstance(own, ImageFont.FreeTypeFont) else (size, 0)
        y += (ascent - descent) / 2
    for run in runs:  # side by side on one baseline
        font = fonts.font(size, run.file)
        draw.text((x, y), run.text, color, font, anchor="ls")
        x += font.getlength(run.text)


def ellipsize(text: str, size: float, limit: float) -> str:
    """Return `text`, or its beginning and two dots if it is wider than `limit` pixels."""
    if len(text) <= _LONGEST_LABEL and width(text, size) <= limit:
        return text
    text = text[:_LONGEST_LABEL]
    while text and width(text + "..", size) > limit:
        text = text[:-1]
    return text.rstrip() + ".."


def wrap(pieces: Iterable[Piece], size: float, limit: float) -> list[list[Placed]]:
    """Break pieces into lines of at most `limit` pixels. A word that is wider breaks between any letters."""
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
    if len(lines) > _MOST_LINES:
        some = next((placed.piece for line in lines for placed in line), None)
        lines[_MOST_LINES:] = [[Placed(0.0, replace(some, text="..", underlined=False))]] if some else []
    return [_in_reading_order(line, size) for line in lines]


def _in_reading_order(line: list[Placed], size: float) -> list[Placed]:
    """Reverse the places of neighbouring words of right-to-left scripts; other words keep theirs."""
    directions = [_direction(placed.piece.text) for placed in line]
    ordered, start = list(line), 0
    while "R" in directions[start:]:
        first = directions.index("R", start)
        end = next((i for i in range(first, len(line)) if directions[i] == "L"), len(line))
        last = max(i for i in range(first, end) if directions[i] == "R") + 1
        left = line[first].x
        right = line[last - 1].x + _advance(line[last - 1].piece, size)
        for i in range(first, last):
            beyond = line[i].x + _advance(line[i].piece, size)
            ordered[i] = Placed(left + right - beyond, line[i].piece)
        start = end
    return ordered


def _direction(text: str) -> str:
    """Return "R", "L", or "" for a text whose signs have no direction of their own."""
    strong = {"L": "L", "R": "R", "AL": "R"}
    found = (strong.get(unicodedata.bidirectional(character)) for character in text)
    return next(filter(None, found), "")


def draw_lines(
    draw: ImageDraw.ImageDraw, lines: list[list[Placed]], left: float, top: float, size: float
) -> None:
    """Draw wrapped lines. The block is len(lines) * LINE_HEIGHT * size pixels high."""
    for row, line in enumerate(lines):
        baseline = top + (row + 0.5) * LINE_HEIGHT * size + 0.35 * size
        for placed in line:
            piece, x = placed.piece, left + placed.x
            raise_by = 0.38 * size if piece.raised else 0.0
            letters = size * _SMALL if piece.raised else size
            draw_text(draw, (x, baseline - raise_by), piece.text, piece.color, letters, "ls")
            if piece.underlined and not piece.raised:
                below = baseline + 0.16 * size
                box = (x, below, x + _advance(piece, size), below + 0.07 * size)
                draw.rectangle(box, fill=piece.color)


def _advance(piece: Piece, size: float) -> float:
    if piece.raised:
        return width(piece.text, size * _SMALL) + 0.08 * size
    return width(piece.text, size)


def _words(pieces: Iterable[Piece]) -> list[list[Piece]]:
    """Split pieces into words (of one or more pieces), blanks and line breaks, in order."""
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
