"""An answer as one picture: masks on the image, and below it the answer, phrases in their masks' colours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw

from lira_runtime import captions
from lira_runtime.captions import LINE_HEIGHT, Color, Piece
from lira_runtime.fonts import font

# Sky, orange, green, coral, yellow, violet, mint, magenta. Under red- and green-blindness any two are still
# at least 15 apart in CIELAB. As text on the panel each has a contrast of at least 5.8:1.
PALETTE: tuple[Color, ...] = (
    (77, 182, 245),
    (245, 154, 12),
    (25, 192, 138),
    (255, 90, 69),
    (246, 238, 90),
    (156, 130, 255),
    (195, 245, 220),
    (255, 98, 176),
)
PANEL: Color = (20, 23, 28)
INK: Color = (232, 234, 237)
FAINT: Color = (150, 156, 166)

_TINT = 0.3  # opacity of a mask's colour over the object
_DIM = 0.35  # opacity of black over pixels outside all masks
_SUBPIXEL_BITS = 4
_LARGEST_STEP = 12.0  # larger mask pixels keep their corners
_FINE = 2  # panels are drawn this many times larger, then reduced, for smooth edges


class Span(NamedTuple):
    """A phrase of the answer with its mask. For a mask that the text does not name, start == end."""

    start: int
    end: int
    mask: np.ndarray | Callable[[], np.ndarray]  # [H, W] bool, or a function that returns it
    label: str = ""


def color(index: int) -> Color:
    """Return the colour of mask `index`. Colours repeat after eight; numbers on the masks do not."""
    return PALETTE[index % len(PALETTE)]


def overlay(
    image: Image.Image,
    text: str,
    spans: Sequence[Span | tuple[int, int, np.ndarray]] = (),
    *,
    question: str = "",
    size: int = 1024,
) -> Image.Image:
    """Return the image with translucent, outlined masks; below it the question, the answer and a legend.

    image: RGB. text: the answer without tags. spans: its phrases (character ranges of `text`) with masks
    [H, W] bool at the image's size. size: pixels of the picture's longer side, to which the image is enlarged
    or reduced. Several masks have numbers, also in the text and in the legend.
    """
    named = [Span(*span) for span in spans]
    factor = size / max(image.size)
    shown = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    masks, shares = [], []
    for span in named:
        mask = span.mask() if callable(span.mask) else span.mask
        if mask.shape != (image.height, image.width):
            raise ValueError(f"mask is {mask.shape}, the image is {(image.height, image.width)}")
        masks.append(_resize_mask(mask, *shown))
        shares.append(float(mask.mean()))
    unit = size / 1024
    picture = _masked_picture(image, masks, shown, unit)
    margin = round(28 * unit)
    width = max(picture.width, round(0.75 * size)) + 2 * margin
    panel = _caption(text, named, shares, question, width - 2 * margin, unit)
    card = Image.new("RGB", (width, picture.height + panel.height + 3 * margin), PANEL)
    card.paste(picture, ((width - picture.width) // 2, margin), _rounded(picture.size, 12 * unit))
    card.paste(panel, (margin, picture.height + 2 * margin))
    return card


# --- masks on the image -----------------------------------------------------------------------------


def _masked_picture(
    image: Image.Image, scaled: Sequence[np.ndarray], size: tuple[int, int], unit: float
) -> Image.Image:
    """Return the image at `size`, with masks of that size tinted, outlined and numbered."""
    width, height = size
    factor = max(size) / max(image.size)
    rgb = image if image.mode == "RGB" else image.convert("RGB")  # convert copies: slow for large images
    pixels = np.array(rgb.resize((width, height), Image.Resampling.LANCZOS))
    outlines = [_outlines(mask, min(max(2.0, factor), _LARGEST_STEP)) for mask in scaled]
    if scaled:
        cover = np.zeros((height, width), np.uint8)
        for outline in outlines:
            cover = np.maximum(cover, _filled(outline, cover.shape))
        _blend(pixels, 255 - cover, (0, 0, 0), _DIM)
    for index, outline in enumerate(outlines):
        _blend(pixels, _filled(outline, (height, width)), color(index), _TINT)
    for index, outline in enumerate(outlines):  # after all tints, so that none covers an outline
        for thickness, ink in ((6 * unit, PANEL), (3.2 * unit, color(index))):
            cv2.polylines(pixels, outline, True, ink, max(1, round(thickness)), cv2.LINE_AA, _SUBPIXEL_BITS)
    picture = Image.fromarray(pixels)
    if len(scaled) > 1 and min(picture.size) > 60 * unit:  # on a thin strip the numbers would hide everything
        for index, centre in enumerate(_label_places(scaled, 19 * unit)):
            if centre is not None:
                _stamp(picture, centre, index, 19 * unit)
    return picture


def _resize_mask(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """[H, W] bool -> [height, width] bool. Enlarged masks get rounder edges."""
    factor = width / mask.shape[1]
    if factor <= 1:
        bright = mask.astype(np.uint8)  # a quarter of the memory of float32
        bright *= 255
        shrunk = cv2.resize(bright, (width, height), interpolation=cv2.INTER_AREA)
        return np.asarray(shrunk) > 0.4 * 255  # a little less than half, to keep thin parts
    large = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_NEAREST)
    return (
        np.asarray(cv2.GaussianBlur(large, (0, 0), 0.4 * min(factor, _LARGEST_STEP))) > 0.5
    )  # keeps a single pixel


def _outlines(mask: np.ndarray, step: float) -> list[np.ndarray]:
    """Return closed curves around a mask and its holes, [N, 1, 2] int32 in fixed point.

    They are smoothed along the curve over about `step`, the size of one pixel of the original mask here.
    """
    curves, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outlines = []
    for curve in curves:
        points = curve.astype(np.float32)  # [N, 1, 2], neighbours about one pixel apart
        reach = int(4 * step)
        if len(points) > 2 * reach:
            around = np.concatenate([points[-reach:], points, points[:reach]])
            smooth = cv2.GaussianBlur(around, (1, 2 * reach + 1), 0, sigmaY=1.6 * step)
            points = np.asarray(smooth, np.float32)[reach:-reach]
        outlines.append(np.rint(points * 2**_SUBPIXEL_BITS).astype(np.int32).reshape(-1, 1, 2))
    return outlines


def _filled(outlines: Sequence[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """Return [H, W] uint8: 255 inside, 0 outside and in holes, with smooth edges."""
    cover = np.zeros(shape, np.uint8)
    cv2.fillPoly(cover, list(outlines), 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    return cover


def _blend(pixels: np.ndarray, cover: np.ndarray, ink: Color, opacity: float) -> None:
    weight = (cover.astype(np.float32) * (opacity / 255))[..., None]
    pixels[:] = (pixels + (np.array(ink, np.float32) - pixels) * weight).round()


def _label_places(masks: Sequence[np.ndarray], radius: float) -> Iterator[tuple[float, float] | None]:
    """Yield for each mask its innermost point (x, y) that earlier labels leave free; None if it is empty."""
    taken: list[tuple[float, float]] = []
    for mask in masks:
        if not mask.any():
            yield None
            continue
        depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
        y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
        for other in taken:
            depth = np.where((x - other[0]) ** 2 + (y - other[1]) ** 2 < (2.2 * radius) ** 2, 0, depth)
        row, column = np.unravel_index(int(depth.argmax()), mask.shape)
        centre = float(column), float(row)
        if depth[row, column] < 1.5 * radius:  # a label would hide a mask this small: put it above
            above = np.flatnonzero(mask.any(axis=1))[0] - 1.4 * radius
            centre = centre[0], float(above)
        inset = 1.3 * radius
        centre = (
            min(max(centre[0], inset), max(mask.shape[1] - inset, inset)),
            min(max(centre[1], inset), max(mask.shape[0] - inset, inset)),
        )
        taken.append(centre)
        yield centre


def _stamp(picture: Image.Image, centre: tuple[float, float], index: int, radius: float) -> None:
    """Draw the number of mask `index` in a disc."""
    side = round(2.3 * radius) * 4
    badge = Image.new("RGBA", (side, side), (*PANEL, 0))
    draw = ImageDraw.Draw(badge)
    draw.ellipse((0, 0, side - 1, side - 1), fill=(*PANEL, 255))
    edge = side * 0.07
    draw.ellipse((edge, edge, side - 1 - edge, side - 1 - edge), fill=color(index))
    number = str(index + 1)
    digits = font(side * (0.56 if len(number) == 1 else 0.44))
    draw.text((side / 2, side / 2), number, PANEL, digits, anchor="mm", stroke_width=round(side * 0.012))
    badge = badge.resize((side // 4, side // 4), Image.Resampling.LANCZOS)
    corner = round(centre[0] - badge.width / 2), round(centre[1] - badge.height / 2)
    picture.paste(badge, corner, badge)


def _rounded(size: tuple[int, int], radius: float) -> Image.Image:
    """Return an L-mode stencil with rounded corners."""
    stencil = Image.new("L", (size[0] * _FINE, size[1] * _FINE), 0)
    box = (0, 0, stencil.width - 1, stencil.height - 1)
    ImageDraw.Draw(stencil).rounded_rectangle(box, min(radius * _FINE, *stencil.size), fill=255)
    return stencil.resize(size, Image.Resampling.BOX)


# --- text below it ----------------------------------------------------------------------------------


def _caption(
    text: str, spans: Sequence[Span], shares: Sequence[float], question: str, width: int, unit: float
) -> Image.Image:
    """Return the panel of `width` pixels with the question, the answer and the legend."""
    fine = _FINE * unit
    limit = width * _FINE
    gap = 16 * fine
    blocks = [
        (captions.wrap([Piece(question.strip(), FAINT)], 21 * fine, limit), 21 * fine),
        (captions.wrap(_pieces(text, spans), 28 * fine, limit), 28 * fine),
    ]
    blocks = [(lines, size) for lines, size in blocks if any(lines)]
    chips = _chips(text, spans, shares, 21 * fine, limit)
    height = sum(len(lines) * LINE_HEIGHT * size + gap for lines, size in blocks)
    rows = 1 + max((row for row, *_ in chips), default=-1)
    height = max(height + rows * 40 * fine - (0 if chips else gap), 1)
    panel = Image.new("RGB", (limit, round(height / _FINE) * _FINE), PANEL)
    draw = ImageDraw.Draw(panel)
    top = 0.0
    for lines, size in blocks:
        captions.draw_lines(draw, lines, 0, top, size)
        top += len(lines) * LINE_HEIGHT * size + gap
    for row, x, index, name, share in chips:
        y = top + (row + 0.5) * 40 * fine
        x = _draw_disc(draw, x, y, index, len(spans) > 1, fine)
        captions.draw_text(draw, (x, y), name, INK, 21 * fine, "lm")
        x += captions.width(name, 21 * fine)  # separately: a right-to-left name would swallow the share
        captions.draw_text(draw, (x, y), share, INK, 21 * fine, "lm")
    return panel.resize((width, panel.height // _FINE), Image.Resampling.LANCZOS)


def _pieces(text: str, spans: Sequence[Span]) -> list[Piece]:
    """Cut the answer at its phrases' ends. Where two phrases overlap, the later one gives the colour."""
    owner = np.full(len(text), -1)
    for index, span in enumerate(spans):
        owner[span.start : span.end] = index
    pieces: list[Piece] = []
    start = 0
    for end in range(1, len(text) + 1):
        if end < len(text) and owner[end] == owner[start]:
            continue
        index = int(owner[start])
        pieces.append(Piece(text[start:end], INK if index < 0 else color(index), underlined=index >= 0))
        if index >= 0 and len(spans) > 1:
            pieces.append(Piece(str(index + 1), color(index), raised=True))
        start = end
    return pieces


def _chips(
    text: str, spans: Sequence[Span], shares: Sequence[float], size: float, limit: float
) -> list[tuple[int, float, int, str, str]]:
    """Return the legend's entries: (row, x, index, name, share)."""
    chips: list[tuple[int, float, int, str, str]] = []
    row, x = 0, 0.0
    for index, span in enumerate(spans):
        name = text[span.start : span.end].strip() or span.label or f"mask {index + 1}"
        share = f"   {100 * shares[index]:.1f} %"
        name = captions.ellipsize(name, size, limit * 0.45)
        advance = captions.width(name, size) + captions.width(share, size) + 3.6 * size
        if chips and x + advance - 1.6 * size > limit:
            row, x = row + 1, 0.0
        chips.append((row, x, index, name, share))
        x += advance
    return chips


def _draw_disc(
    draw: ImageDraw.ImageDraw, x: float, y: float, index: int, numbered: bool, fine: float
) -> float:
    """Draw a legend entry's disc; return the x at which its text begins."""
    radius = 14 * fine
    draw.ellipse((x, y - radius, x + 2 * radius, y + radius), fill=color(index))
    if numbered:
        number = str(index + 1)
        digits = font((18 if len(number) == 1 else 15) * fine)
        draw.text((x + radius, y), number, PANEL, digits, anchor="mm", stroke_width=round(0.4 * fine))
    return x + 2 * radius + 10 * fine
