from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from lira_runtime import captions, draw, fonts
from lira_runtime.draw import PALETTE, PANEL, Span, overlay

GREY = Image.new("RGB", (96, 64), (128, 128, 128))
TEXT = "a red apple beside a green pear"


def box_mask(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((64, 96), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def near(picture: Image.Image, tint: tuple[int, int, int], tolerance: int = 12) -> int:
    """Return how many pixels have this colour."""
    distance = np.abs(np.asarray(picture, dtype=int) - np.array(tint)).max(axis=-1)
    return int((distance <= tolerance).sum())


def contrast(a: tuple[int, int, int], b: tuple[int, int, int]) -> float:
    """Return the WCAG 2 contrast ratio."""

    def luminance(tint: tuple[int, int, int]) -> float:
        values = np.array(tint) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_every_colour_has_enough_contrast_for_text() -> None:
    assert all(contrast(tint, PANEL) > 4.5 for tint in (*PALETTE, draw.INK, draw.FAINT))
    assert all(np.abs(np.subtract(a, b)).max() > 60 for a, b in itertools.combinations(PALETTE, 2))


def test_colours_repeat() -> None:
    assert [draw.color(index) for index in range(17)] == [*PALETTE, *PALETTE, PALETTE[0]]


def test_phrases_and_masks_share_their_colours() -> None:
    spans = [Span(0, 11, box_mask(8, 8, 40, 56)), Span(19, 31, box_mask(56, 8, 88, 56))]
    picture = overlay(GREY, TEXT, spans, size=512)
    image, panel = picture.crop((0, 0, picture.width, 380)), picture.crop((0, 380, *picture.size))
    for tint in PALETTE[:2]:
        assert near(image, tint) > 200  # outline
        assert near(panel, tint) > 100  # text, underline and legend
    assert near(picture, PALETTE[2]) == 0


def test_pixels_are_tinted_inside_and_dimmed_outside_masks() -> None:
    picture = np.asarray(overlay(GREY, "", [(0, 0, box_mask(16, 16, 48, 48))], size=960), dtype=int)
    margin = round(28 * 960 / 1024)
    inside = picture[margin + 320, margin + 320]
    outside = picture[margin + 320, margin + 800]
    assert np.abs(inside - (0.7 * 128 + 0.3 * np.array(PALETTE[0]))).max() <= 2
    assert np.abs(outside - 0.65 * 128).max() <= 2


def test_holes_stay_open() -> None:
    mask = box_mask(8, 8, 88, 56) & ~box_mask(32, 24, 64, 40)
    picture = np.asarray(overlay(GREY, "", [(0, 0, mask)], size=960), dtype=int)
    margin = round(28 * 960 / 1024)
    assert np.abs(picture[margin + 320, margin + 480] - 0.65 * 128).max() <= 2


def test_without_masks_the_image_is_untouched() -> None:
    picture = np.asarray(overlay(GREY, "Yes.", question="Is it grey?", size=512))
    assert (picture[60:300, 60:400] == 128).all()


def test_arguments_are_not_changed_and_the_result_repeats() -> None:
    mask = box_mask(8, 8, 40, 56)
    before = mask.copy()
    first, second = (np.asarray(overlay(GREY, TEXT, [(0, 11, mask)], size=300)) for _ in range(2))
    assert_array_equal(first, second)
    assert_array_equal(mask, before)
    assert GREY.getcolors() == [(96 * 64, (128, 128, 128))]


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2000, 9), (192, 192), (2100, 1400)])
def test_small_large_and_thin_images_are_drawn(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (90, 120, 60))
    full = np.ones((size[1], size[0]), dtype=bool)
    half = full.copy()
    half[: max(1, size[1] // 2)] = False
    picture = overlay(image, TEXT, [(0, 11, full), (19, 31, half)], size=320)
    assert picture.mode == "RGB"
    assert 240 <= picture.width <= 340
    assert 50 <= picture.height <= 700


def test_a_mask_of_one_pixel_is_visible() -> None:
    assert near(overlay(GREY, "", [(0, 0, box_mask(50, 30, 51, 31))], size=960), PALETTE[0]) > 50


def test_empty_masks_and_many_masks_are_drawn() -> None:
    masks = [box_mask(4 * i, 10, 4 * i + 6, 50) for i in range(20)]
    masks[3][:] = False
    picture = overlay(GREY, "", [Span(0, 0, mask, f"thing {i}") for i, mask in enumerate(masks)], size=512)
    assert all(near(picture, tint) > 50 for tint in PALETTE)


def test_spans_beyond_the_text_and_odd_characters_are_drawn() -> None:
    text = "un café “noir” — 猫 🐈\n\n\tfin " + "x" * 500
    spans = [(3, 7, box_mask(0, 0, 9, 9)), (900, 950, box_mask(9, 9, 20, 20)), (5, 9, box_mask(0, 0, 2, 2))]
    assert overlay(GREY, text, spans, question="¿qué?\n\n", size=300).height > 200


def test_a_mask_of_another_size_raises_value_error() -> None:
    with pytest.raises(ValueError, match="mask is"):
        overlay(GREY, "", [(0, 0, np.zeros((96, 64), dtype=bool))])


def test_a_shrunk_mask_keeps_pixels_that_it_covers_by_half() -> None:
    mask = np.zeros((4, 6), dtype=bool)
    mask[:2, 0] = mask[2, 2] = mask[2:, 4:] = True  # 2, 1 and 4 of a pixel's 4
    assert_array_equal(draw._resize_mask(mask, 3, 2), [[True, False, False], [False, False, True]])


def test_the_legend_tells_the_share_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def draw_text(pen: object, at: object, text: str, color: object, size: float, anchor: str) -> None:
        drawn.extend([text.strip()] if anchor == "lm" else [])  # the answer's own lines have "ls"

    monkeypatch.setattr(captions, "draw_text", draw_text)
    overlay(GREY, TEXT, [Span(2, 11, box_mask(0, 0, 48, 32)), Span(0, 0, box_mask(0, 0, 96, 64), "all")])
    assert drawn == ["red apple", "25.0 %", "all", "100.0 %"]


def test_numbers_are_on_several_masks_inside_the_picture_and_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    stamped: list[tuple[int, float, float]] = []
    monkeypatch.setattr(draw, "_stamp", lambda picture, at, index, radius: stamped.append((index, *at)))
    everywhere = np.ones((64, 96), dtype=bool)
    masks = [
        everywhere,
        np.zeros_like(everywhere),
        everywhere,
        box_mask(0, 0, 2, 2),
        box_mask(94, 62, 96, 64),
    ]
    picture = overlay(GREY, "", [Span(0, 0, mask) for mask in masks], size=960)
    assert [index for index, *_ in stamped] == [0, 2, 3, 4]
    radius, places = 19 * 960 / 1024, np.array([at for _, *at in stamped])
    assert np.hypot(*(places[0] - places[1])) > 2 * radius
    assert (places >= radius).all() and (places <= np.array([960, 640]) - radius).all()
    assert picture.width > 960
    stamped.clear()
    overlay(GREY, "", [Span(0, 0, everywhere)], size=960)
    assert stamped == []


def test_the_later_of_two_phrases_that_overlap_gives_the_colour() -> None:
    nothing = box_mask(0, 0, 0, 0)
    pieces = draw._pieces("abcdef", [Span(0, 4, nothing), Span(2, 5, nothing)])
    assert [(piece.text, piece.color) for piece in pieces] == [
        ("ab", PALETTE[0]),
        ("1", PALETTE[0]),
        ("cde", PALETTE[1]),
        ("2", PALETTE[1]),
        ("f", draw.INK),
    ]


def test_a_legend_that_is_too_wide_goes_on_below() -> None:
    spans, limit = [Span(0, 0, box_mask(0, 0, 1, 1), f"thing number {i}") for i in range(9)], 500.0
    chips = draw._chips("", spans, [0.01] * 9, 21, limit)
    rows = [row for row, *_ in chips]
    assert rows == sorted(rows) and rows[-1] > 1 and set(rows) == set(range(rows[-1] + 1))
    for _, x, _, name, share in chips:
        assert x + captions.width(name, 21) + captions.width(share, 21) <= limit


def test_the_question_stands_above_the_answer() -> None:
    asked, silent = (overlay(GREY, "Yes.", question=question, size=512) for question in ("Is it?", ""))
    assert asked.height > silent.height + 10


# --- text --------------------------------------------------------------------------------------------


def lines_of(text: str, limit: float) -> list[str]:
    wrapped = captions.wrap([captions.Piece(text, draw.INK)], 20, limit)
    return ["".join(placed.piece.text for placed in line) for line in wrapped]


def test_lines_fit_and_nothing_is_lost() -> None:
    text = "the quick brown fox jumps over the lazy dog and an unbreakablylongwordthatneedsmorethanoneline"
    lines = lines_of(text, 160)
    assert all(captions.width(line, 20) <= 165 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert lines[0] == "the quick brown"


def test_line_breaks_are_kept() -> None:
    assert lines_of("one\ntwo\n\nthree", 500) == ["one", "two", "", "three"]
    assert lines_of("", 500) == [""]


def test_punctuation_and_numbers_stay_with_their_word() -> None:
    pieces = [
        captions.Piece("a red apple", PALETTE[0], underlined=True),
        captions.Piece("1", PALETTE[0], raised=True),
        captions.Piece(", sliced", draw.INK),
    ]
    limit = captions.width("a red apple", 20) + 1  # the word fits, its number and comma do not
    lines = ["".join(p.piece.text for p in line) for line in captions.wrap(pieces, 20, limit)]
    assert lines == ["a red", "apple1,", "sliced"]


def test_typographic_signs_become_ascii_and_long_labels_are_cut() -> None:
    assert fonts.runs("“Café” — naïve…") == (fonts.Run('"Cafe" - naive.', None),)
    assert captions.ellipsize("short", 20, 500) == "short"
    cut = captions.ellipsize("a rather long label", 20, 100)
    assert cut.endswith("..")
    assert captions.width(cut, 20) <= 100
