"""Text in pictures: in a font that has its signs, or with a line about the signs that no font has."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, features

from lira_runtime import captions, draw, fonts
from lira_runtime.captions import Piece
from lira_runtime.draw import Span
from lira_runtime.fonts import Run

DEJAVU = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))  # has Arabic, no Chinese
PICTURE = Image.new("RGB", (60, 40), (90, 120, 90))
MASK = np.ones((40, 60), bool)
SHAPING = features.check("raqm") and features.check("fribidi")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Set the fonts of the system, and whether Pillow can shape text."""

    def forget() -> None:
        for cached in (fonts.runs, fonts._plain, fonts._file_with):
            cached.cache_clear()

    def install(*files: str, shaping: bool = True) -> None:
        forget()
        monkeypatch.setattr(fonts, "_files", lambda: files)
        monkeypatch.setattr(fonts, "_can_shape", lambda: shaping)

    yield install
    monkeypatch.undo()
    forget()


def test_signs_come_from_a_font_that_has_them(installed: Callable[..., None]) -> None:
    installed(DEJAVU)
    assert fonts.runs("a красный b") == (Run("a ", None), Run("красный ", DEJAVU), Run("b", None))
    assert fonts.runs("Ω12.") == (Run("Ω12.", DEJAVU),)
    assert fonts.missing("a красный Ω €") is None


def test_signs_that_no_font_has_are_named(installed: Callable[..., None]) -> None:
    installed(DEJAVU)
    assert fonts.runs("the 橙色 one") == (Run("the ?? one", None),)
    said = fonts.missing("the 橙色 one, 橙")
    assert said is not None and '"?" for 橙色: no font of this system has these signs' in said
    assert "\n" not in said
    installed()
    assert fonts.runs("Ж") == (Run("?", None),)
    assert fonts.missing("Ж") is not None
    assert fonts.missing("plain “English” — naïve") is None


@pytest.mark.parametrize(
    ("signs", "package"), [("橙", "fonts-noto-cjk"), ("한", "fonts-noto-cjk"), ("🚗", "fonts-symbola")]
)
def test_the_line_about_missing_signs_names_the_package_to_install(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch, signs: str, package: str
) -> None:
    installed()
    monkeypatch.setattr("sys.platform", "linux")
    assert f"apt-get install {package})" in str(fonts.missing(signs))


def test_scripts_that_need_shaping_are_not_drawn_without_it(installed: Callable[..., None]) -> None:
    installed(DEJAVU, shaping=False)
    assert fonts.runs("الكرة") == (Run("?????", None),)
    said = fonts.missing("الكرة x")
    assert said is not None and "Pillow here cannot lay out Arabic" in said and "libfribidi0" in said
    assert fonts.runs("Ж") == (Run("Ж", DEJAVU),)


@pytest.mark.skipif(not SHAPING, reason="Pillow has no raqm here")
def test_right_to_left_words_are_placed_from_right_to_left(installed: Callable[..., None]) -> None:
    installed(DEJAVU)
    assert fonts.runs("الكرة الحمراء 12.") == (Run("الكرة الحمراء 12.", DEJAVU),)
    (line,) = captions.wrap([Piece("a الكرة الحمراء b", draw.INK)], 20, 1e6)
    placed = {one.piece.text: one.x for one in line}
    assert placed["a"] < placed["الحمراء"] < placed["الكرة"] < placed["b"]
    (plain,) = captions.wrap([Piece("a red ball b", draw.INK)], 20, 1e6)
    assert [one.x for one in plain] == sorted(one.x for one in plain)


def test_signs_without_a_shape_are_left_out() -> None:
    assert fonts.runs("a\u200fb\u202ec\ufe0f\u0301") == (Run("abc", None),)
    assert fonts.runs("a\nb\x00\x1b\u2028c\td") == (Run("a b   c d", None),)
    assert fonts.runs("") == ()


def test_placeholder_fonts_are_not_used() -> None:
    assert fonts._is_placeholder(Path("/System/Library/Fonts/LastResort.otf"))
    assert not fonts._is_placeholder(Path(DEJAVU))


def test_damaged_and_missing_font_files_are_skipped(installed: Callable[..., None], tmp_path: Path) -> None:
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"\0\1\0\0 no font")
    installed(str(broken), str(tmp_path / "gone.ttf"), DEJAVU)
    assert fonts.runs("Ж") == (Run("Ж", DEJAVU),)


@pytest.mark.parametrize(
    "text",
    [
        "\ud800",
        "\n" * 1000,
        "a" * 10_000,
        "\u202e\u200f" * 100,
        "e\u0301" * 200,
        "\x00" * 20,
        "\u0301" * 50,
        "$x^2$ :car: [red]b[/]",
        "".join(chr(random.Random(0).randrange(0x110000)) for _ in range(200)),
    ],
    ids=range(9),
)
def test_any_text_can_be_drawn(text: str) -> None:
    spans = [Span(0, min(5, len(text)), MASK), Span(len(text), len(text), MASK, text)]
    picture = draw.overlay(PICTURE, text, spans, question=text, size=128)
    assert picture.height < 20_000
    fonts.missing(text)
