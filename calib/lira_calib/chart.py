"""The chart of a calibration: what quantizing each unit alone does to masks, tokens and hidden states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lira_bench.drawn_text import as_written, fitted, new_figure
from lira_calib.choosing.search import FLOAT
from lira_calib.choosing.sensitivity import Effect
from lira_engine.errors import LiraError
from lira_engine.system.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
MOST_ROWS = 60
_COLORS = {"int4": "#e07b39", "int8": "#2f6fb5", "w8a8": "#2f6fb5", "fp8": "#2a9d72"}
_FLOAT_COLOR = "#c3c8ce"
_TITLES = ("mask IoU lost", "other tokens", "hidden state error")


def check_path(path: Path | None) -> None:
    """Raise LiraError for a chart's path with another suffix, before the work."""
    if path is not None and path.suffix not in SUFFIXES:
        raise LiraError(f"--chart {path}: expected a name that ends with {' or '.join(SUFFIXES)}")


@as_written()
def write(path: Path, effects: Sequence[Effect], chosen: Mapping[str, str], title: str) -> list[str]:
    """Write a PNG or SVG with a row of bars per unit and form: mask IoU lost, share of other tokens, error of
    the hidden states. Bars of the forms that were chosen are coloured. Returns lines for the user.

    Shows the MOST_ROWS most harmful, in the order of the stages. Raises LiraError for another suffix, and if
    the file cannot be written.
    """
    check_path(path)
    shown = _shown(effects)
    names = [f"{effect.unit}  {effect.option}" for effect in shown]
    figure = new_figure(11, 1.6 + 0.2 * max(len(shown), 4))
    axes = figure.subplots(1, 3, sharey=True)
    colors = [_color(effect, chosen) for effect in shown]
    values = (
        [1 - effect.mask_iou for effect in shown],
        [1 - effect.tokens for effect in shown],
        [effect.hidden_error for effect in shown],
    )
    for one, heading, of_panel in zip(axes, _TITLES, values, strict=True):
        _bars(one, heading, of_panel, colors, names)
    figure.suptitle(fitted(title, 120), x=0.01, ha="left", fontsize=11)
    axes[0].invert_yaxis()  # the panels share it
    rest = len(effects) - len(shown)
    more = f" The {len(shown)} most harmful of {len(effects)}." if rest > 0 else ""
    figure.supxlabel(f"Each quantized alone. Coloured: chosen; grey: not.{more}", fontsize=8)
    with atomic_write(path) as file:
        figure.savefig(file, format=path.suffix[1:], dpi=100, metadata=_METADATA[path.suffix])
    return [f"wrote {path}"]


_METADATA: dict[str, dict[str, None]] = {".png": {"Software": None}, ".svg": {"Date": None}}


def _shown(effects: Sequence[Effect]) -> list[Effect]:
    worst = sorted(range(len(effects)), key=lambda index: -effects[index].harm)[:MOST_ROWS]
    return [effects[index] for index in sorted(worst)]


def _color(effect: Effect, chosen: Mapping[str, str]) -> str:
    if chosen.get(effect.unit, FLOAT) != effect.option:
        return _FLOAT_COLOR
    kind = effect.option.partition(" ")[0].partition("/")[0]
    return _COLORS.get(kind, "#7f6bd1")


def _bars(
    axes: Axes, heading: str, values: Sequence[float], colors: Sequence[str], names: Sequence[str]
) -> None:
    axes.barh(range(len(values)), values, color=colors, height=0.75)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_title(heading, loc="left", fontsize=10)
    axes.tick_params(axis="x", labelsize=8)
    axes.margins(y=0.01)
    axes.set_xlim(0, 1.05 * max(values, default=0.0) or 0.01)
    axes.locator_params(axis="x", nbins=4)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
