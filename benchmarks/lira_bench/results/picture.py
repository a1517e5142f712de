"""The picture of all engines of a machine: a panel per figure, a bar per engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lira_bench.drawn_text import as_written, fitted, new_figure
from lira_bench.results.result import EngineResult, Figures, Results
from lira_bench.results.table import heading, remarks, setting
from lira_bench.speed.pictures import AUTHORS_COLOR, COLORS, FAINT, INK, plain, png
from lira_bench.speed.report import seconds, significant
from lira_engine.inspect import size_text
from lira_runtime.timings import AUTHORS_TOKENS_PER_SECOND

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STATES = {"refused": "refused", "failed": "failed"}


@dataclass(frozen=True)
class Panel:
    """A figure of every engine. `value`: None for engines that do not have it. `best`: which one is the best;
    `authors`: the authors' rate is drawn. `log`: dots on a logarithmic axis."""

    title: str
    color: str
    value: Callable[[EngineResult], float | None]
    text: Callable[[float], str]
    best: Callable[[list[float]], float] = min
    authors: bool = False
    log: bool = False


def _of(read: Callable[[Figures], float | None]) -> Callable[[EngineResult], float | None]:
    return lambda one: None if one.figures is None else read(one.figures)


def _mib(size: float) -> str:
    return f"{size:,.0f} MiB"


def _energy(figures: Figures) -> float | None:
    return figures.card.energy_j_per_answer if figures.card else None


PANELS = (
    Panel(
        "Decode only, tokens per second", COLORS["decode"], _of(lambda f: f.decode_tokens_per_s), significant,
        best=max, authors=True,
    ),
    Panel(
        "End to end, tokens per second", COLORS["semantic_encoder"], _of(lambda f: f.end_to_end_tokens_per_s),
        significant, best=max, authors=True,
    ),
    Panel("Time to first token", COLORS["prefill"], _of(lambda f: f.ttft_s), seconds),
    Panel(
        "Peak memory of the process", COLORS["sefe"], _of(lambda f: f.peak_rss_mib), _mib,
    ),
    Panel("Size of the engines", COLORS["preprocess"], lambda one: one.bytes, lambda b: size_text(int(b))),
    Panel(
        "Largest error on check vectors", AUTHORS_COLOR, lambda one: one.error.value if one.error else None,
        lambda error: f"{error:.1e}", log=True,
    ),
    Panel(
        "Memory of the card", COLORS["region_encode"],
        _of(lambda f: f.card.peak_memory_mib if f.card else None), _mib,
    ),
    Panel("Energy per answer", COLORS["pixel_decoder"], _of(_energy), lambda j: f"{significant(j)} J"),
)  # fmt: skip


@as_written()
def picture(results: Results) -> bytes:
    """Return a PNG. A figure that no engine has gets no panel."""
    engines = results.engines
    shown = [panel for panel in PANELS if any(panel.value(one) is not None for one in engines)]
    columns = 3 if len(shown) <= 6 else 4
    rows = math.ceil(len(shown) / columns)
    figure = new_figure(13 if columns == 3 else 16, 1.4 + rows * (0.9 + 0.42 * len(engines)))
    figure.set_layout_engine("constrained", hspace=0.12)  # room for what stands below an axis
    grid = figure.subplots(rows, columns, squeeze=False)
    for number, axes in enumerate(grid.flat):
        if number < len(shown):
            _draw(axes, shown[number], engines, named=number % columns == 0)
        else:
            axes.set_visible(False)
    synthetic = ", synthetic weights" if results.bundle.synthetic else ""
    figure.suptitle(heading(results) + synthetic, x=0.01, ha="left", fontsize=16, color=INK)
    about = " ".join([*remarks(results), setting(results)])
    figure.supxlabel(fitted(about, 200, rows=3), x=0.01, ha="left", fontsize=8.5, color=FAINT)
    return png(figure)


def _draw(axes: Axes, panel: Panel, engines: tuple[EngineResult, ...], named: bool) -> None:
    found = [(place, value) for place, one in enumerate(engines) if (value := panel.value(one)) is not None]
    places, values = [place for place, _ in found], [value for _, value in found]
    largest = max([*values, AUTHORS_TOKENS_PER_SECOND] if panel.authors else values)
    best = panel.best(values) if len(set(values)) > 1 else None
    if panel.log:
        positive = [value for value in values if value > 0] or [1.0]
        axes.set_xscale("log")
        axes.set_xlim(min(positive) / 5, 60 * max(positive))
        axes.hlines(
            places, min(positive) / 5, [max(value, min(positive) / 5) for value in values], color="#e4e7eb"
        )
        axes.plot(values, places, "o", color=panel.color, markersize=10)
    else:
        axes.barh(places, values, color=panel.color, height=0.66)
        axes.set_xlim(0, 1.32 * largest)
    for place, value in found:
        weight = "bold" if value == best else "normal"
        axes.annotate(
            panel.text(value), (value, place), xytext=(9 if panel.log else 5, 0), textcoords="offset points",
            va="center", fontsize=11, color=INK, weight=weight, zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    if panel.authors:
        axes.axvline(AUTHORS_TOKENS_PER_SECOND, color=AUTHORS_COLOR, linestyle="--", linewidth=1.4, zorder=3)
        axes.annotate(
            "authors, LIRA-2B: 21.6", (AUTHORS_TOKENS_PER_SECOND, len(engines) - 0.45), xytext=(0, -3),
            textcoords="offset points", va="top", fontsize=9, color=AUTHORS_COLOR, annotation_clip=False,
            ha="right" if largest < 2 * AUTHORS_TOKENS_PER_SECOND else "left",
        ).set_in_layout(False)  # fmt: skip
    axes.set_yticks(range(len(engines)), [one.name if named else "" for one in engines])
    axes.set_ylim(len(engines) - 0.4, -0.7)
    if named:
        for place, one in enumerate(engines):
            if place not in places and one.status in _STATES:
                axes.text(
                    0,
                    place,
                    f"  {_STATES[one.status]}",
                    va="center",
                    fontsize=10,
                    color=FAINT,
                    style="italic",
                    zorder=4,  # the authors' line may cross it
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0},
                )
    axes.set_title(panel.title, loc="left", fontsize=12.5, color=INK, pad=4)
    plain(axes)
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_color(FAINT)
    axes.tick_params(axis="y", labelsize=12, length=0)
    axes.tick_params(axis="x", which="both", bottom=False, labelbottom=False)  # each bar has its figure
