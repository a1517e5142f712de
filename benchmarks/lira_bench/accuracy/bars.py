"""AttrEval as the paper's figure 5 shows it: the object with its mask beside the words that describe it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lira_bench.accuracy.files import image_path
from lira_bench.accuracy.items import Item, Record
from lira_engine.atomic import atomic_write
from lira_runtime import draw, rle
from lira_runtime.images import open_image

ROWS = 4
_ORDER = ("color", "colour", "location")  # of the charts, other kinds behind them
_RIGHT, _OTHER = tuple(v / 255 for v in draw.PALETTE[2]), (0.62, 0.64, 0.68)


def write(path: Path, scored: Sequence[tuple[Item, Record]], images: Path) -> bool:
    """A PNG with up to four expressions: picture and mask, top five colours, top five locations; true words
    are green. Expressions with more kinds of attributes come first. Returns whether there was any to draw."""
    rows = _rows(scored)
    if not rows:
        return False
    columns = 1 + max(len(kinds) for kinds in rows)
    figure = Figure(figsize=(3.6 * columns, 3.0 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    for number, kinds in enumerate(rows):
        item, record = kinds[0]
        axes = figure.add_subplot(len(rows), columns, number * columns + 1)
        axes.imshow(_masked(images, record))
        axes.set_title(item.questions[0].text or "", fontsize=10)
        axes.set_axis_off()
        for place, (_, of_kind) in enumerate(kinds, 2):
            _draw_bars(figure.add_subplot(len(rows), columns, number * columns + place), of_kind["scores"])
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return True


def _rows(scored: Sequence[tuple[Item, Record]]) -> list[list[tuple[Item, Record]]]:
    """Per expression its kinds of attributes, in the order of the charts."""
    together: dict[tuple[str, str | None], list[tuple[Item, Record]]] = {}
    for item, record in scored:
        if item.words and record["scores"]["ranked"]:
            together.setdefault((item.image, item.questions[0].text), []).append((item, record))
    rows = [sorted(kinds, key=lambda pair: _place(pair[1]["scores"]["kind"])) for kinds in together.values()]
    return sorted(rows, key=lambda kinds: -len(kinds))[:ROWS]


def _place(kind: str) -> int:
    return _ORDER.index(kind) if kind in _ORDER else len(_ORDER)


def _masked(images: Path, record: Record) -> np.ndarray:
    """[H, W, 3] uint8: the picture, tinted where the mask is and darker elsewhere."""
    pixels = np.asarray(open_image(image_path(images, record["image"])), dtype=np.float64)
    mask = rle.decode(record["answers"][0]["masks"][0]["rle"])
    tint = np.array(draw.PALETTE[0], dtype=np.float64)
    mixed = np.where(mask[..., None], 0.6 * pixels + 0.4 * tint, 0.5 * pixels)
    return mixed.round().astype(np.uint8)


def _draw_bars(axes: Any, scores: dict[str, Any]) -> None:
    words = [word for word, _ in scores["ranked"]]
    shares = [share for _, share in scores["ranked"]]
    colors = [_RIGHT if word in scores["answers"] else _OTHER for word in words]
    axes.bar(range(len(words)), shares, color=colors, width=0.7)
    axes.set_xticks(range(len(words)), words, fontsize=9)
    axes.set_ylim(0, 1)
    axes.set_title(f"{scores['kind']} (true: {', '.join(scores['answers'])})", fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
