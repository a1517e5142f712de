"""Draw AttrEval as the paper's figure 5: the object with its mask beside the bars of its attribute words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lira_bench.accuracy.files import identity, image_path
from lira_bench.accuracy.items import Item, Record
from lira_bench.accuracy.output import START_ANEW
from lira_bench.drawn_text import as_written, fitted, new_figure, without_glyph
from lira_engine.errors import LiraError
from lira_engine.system.atomic import atomic_write
from lira_runtime import draw, rle
from lira_runtime.images import open_image

ROWS = 3
SIDE = 240  # pixels of a picture's longer side, so that the file stays small
_ORDER = ("color", "colour", "location")  # of the charts; other kinds follow
_RIGHT, _OTHER = tuple(v / 255 for v in draw.PALETTE[2]), (0.72, 0.74, 0.78)
_OUTLINE = tuple(v / 255 for v in draw.PALETTE[0])
_TITLE_COLUMNS, _TITLE_ROWS = 34, 4  # what fits over a chart
_WORD_COLUMNS = 20
_SHOWN = 20  # characters that the font lacks
_CAPTION = "Probability of a word among the candidates at the [SEG]. Green: true."


@as_written()
def write(path: Path, scored: Sequence[tuple[Item, Record]], images: Path) -> list[str]:
    """Write a PNG with up to three expressions: picture and mask, top five colours, top five locations.

    True words are green. Expressions with more kinds of attributes come first, and each image once before any
    comes twice. Returns lines for the user, none if there was nothing to draw. Raises LiraError if an image
    was replaced since it was asked about.
    """
    rows = _rows(scored)
    if not rows:
        return []
    columns = 1 + max(len(kinds) for kinds in rows)
    figure = new_figure(2.9 * columns, 2.4 * len(rows) + 0.3)
    figure.supxlabel(_CAPTION, fontsize=9)
    for number, kinds in enumerate(rows):
        item, record = kinds[0]
        axes = figure.add_subplot(len(rows), columns, number * columns + 1)
        _draw_picture(axes, images, record)
        axes.set_title(fitted(f"“{item.questions[0].text}”", _TITLE_COLUMNS, _TITLE_ROWS), fontsize=10)
        for place, (_, of_kind) in enumerate(kinds, 2):
            _draw_bars(figure.add_subplot(len(rows), columns, number * columns + place), of_kind["scores"])
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=100, metadata={"Software": None})
    told = [f"wrote {path}"]
    if lacking := without_glyph(_texts(rows)):
        more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
        told.append(f"{path.name}: its font has no {' '.join(lacking[:_SHOWN])}{more}: they are boxes there")
    return told


def _texts(rows: Sequence[Sequence[tuple[Item, Record]]]) -> Iterator[str]:
    for item, record in (pair for kinds in rows for pair in kinds):
        yield item.questions[0].text or ""
        yield record["scores"]["kind"]
        yield from record["scores"]["answers"]
        yield from (word for word, _ in record["scores"]["ranked"])


def _rows(scored: Sequence[tuple[Item, Record]]) -> list[list[tuple[Item, Record]]]:
    """Return a row per expression: its kinds of attributes, in the order of the charts."""
    together: dict[tuple[str, str | None], list[tuple[Item, Record]]] = {}
    for item, record in scored:
        if item.words and record["scores"]["ranked"]:
            together.setdefault((item.image, item.questions[0].text), []).append((item, record))
    rows = [sorted(kinds, key=lambda pair: _place(pair[1]["scores"]["kind"])) for kinds in together.values()]
    rows.sort(key=lambda kinds: -len(kinds))
    first = {kinds[0][0].image: index for index, kinds in reversed(list(enumerate(rows)))}
    other_images = [rows[index] for index in sorted(first.values())]
    same_images = [kinds for index, kinds in enumerate(rows) if first[kinds[0][0].image] != index]
    return [*other_images, *same_images][:ROWS]


def _place(kind: str) -> int:
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)


def _draw_picture(axes: Any, images: Path, record: Record) -> None:
    """Draw the picture, darkened outside the mask; inside, its colours are what is asked about."""
    path = image_path(images, record["image"])
    if identity(path) != record["image_sha256"]:
        raise LiraError(f"{path} was replaced since it was asked about: {START_ANEW}")
    picture = open_image(path, upright=False)
    mask = Image.fromarray(rle.decode(record["answers"][0]["masks"][0]["rle"]))
    scale = min(1.0, SIDE / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    pixels = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.BILINEAR))  # [h, w, 3]
    inside = np.asarray(mask.resize(size, Image.Resampling.NEAREST)) > 0  # [h, w]
    axes.imshow(np.where(inside[..., None], pixels, pixels // 3))
    if inside.any() and not inside.all():
        axes.contour(inside, levels=[0.5], colors=[_OUTLINE], linewidths=1.8)
    axes.set_axis_off()


def _draw_bars(axes: Any, scores: dict[str, Any]) -> None:
    words = [word for word, _ in scores["ranked"]]
    shares = [share for _, share in scores["ranked"]]
    colors = [_RIGHT if word in scores["answers"] else _OTHER for word in words]
    bars = axes.bar(range(len(words)), shares, color=colors, width=0.7)
    axes.bar_label(bars, [f"{share:.2f}" for share in shares], fontsize=8, padding=1)
    axes.set_xticks(range(len(words)), [fitted(word, _WORD_COLUMNS) for word in words], fontsize=9)
    axes.set_ylim(0, 1.12)
    axes.set_yticks([0, 0.5, 1])
    axes.tick_params("y", labelsize=8)
    title = f"{scores['kind']} (true: {', '.join(scores['answers'])})"
    axes.set_title(fitted(title, _TITLE_COLUMNS, _TITLE_ROWS), fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
