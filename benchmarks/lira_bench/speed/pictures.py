"""The figures of a benchmark: seconds by stage beside 21.6 tok/s, and the timeline of one answer."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any

from lira_bench.drawn_text import as_written, new_figure
from lira_bench.speed.measure import Run
from lira_bench.speed.record import STAGES, Mark
from lira_bench.speed.report import TITLES, heading, seconds, setting, significant
from lira_runtime.timings import AUTHORS_TOKENS_PER_SECOND

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# One colour per stage in all figures: encoders blue, language model orange, masks green.
COLORS = {
    "preprocess": "#9aa3ad",
    "semantic_encoder": "#2f6fb5",
    "pixel_encoder": "#5aa9e6",
    "sefe": "#7f6bd1",
    "prefill": "#e07b39",
    "decode": "#f2b134",
    "pixel_decoder": "#2a9d72",
    "region_encode": "#1f4e80",
    "region_prefill": "#b4532a",
}
INK, FAINT, AUTHORS_COLOR = "#20242b", "#7a828c", "#c2334d"
_MARK_SIGNS = {"mask": ("D", "#2a9d72"), "region": ("s", "#1f4e80")}


@as_written()
def bars(record: Mapping[str, Any]) -> bytes:
    """Return a PNG: seconds per answer by stage, and both rates beside the authors' rate."""
    stages = {name: stage["per_answer"] for name, stage in record["stages"].items()}
    figure = new_figure(11, 4.4)
    left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
    places = range(len(stages))
    left.barh(places, list(stages.values()), color=[COLORS[name] for name in stages], height=0.7)
    left.set_yticks(places, [_stage_label(name, record["stages"][name]) for name in stages])
    left.invert_yaxis()
    longest = max(stages.values())
    for place, value in zip(places, stages.values(), strict=True):
        left.text(value + 0.012 * longest, place, seconds(value), va="center", fontsize=9, color=INK)
    left.set_xlim(0, 1.15 * longest)
    left.set_xlabel(f"seconds of an answer of {record['new_tokens']} tokens")
    left.set_title("Where the time goes", loc="left", fontsize=11)

    rates = record["tokens_per_s"]
    names = ("decode\nonly", "end to end", "authors,\nLIRA-2B")
    values = (rates["decode"], rates["end_to_end"], AUTHORS_TOKENS_PER_SECOND)
    right.bar(range(3), values, color=(COLORS["decode"], COLORS["semantic_encoder"], "#d8dce1"), width=0.62)
    right.axhline(AUTHORS_TOKENS_PER_SECOND, color=AUTHORS_COLOR, linestyle="--", linewidth=1.2)
    for place, value in enumerate(values):
        right.text(place, value, significant(value), ha="center", va="bottom", fontsize=10, color=INK)
    right.set_xticks(range(3), names)
    right.set_ylim(0, 1.18 * max(values))
    right.set_title("Tokens per second", loc="left", fontsize=11)
    _caption(figure, record)
    for axes in (left, right):
        plain(axes)
    return png(figure)


@as_written()
def timeline(record: Mapping[str, Any], run: Run) -> bytes:
    """Return a PNG of when each stage ran: the whole answer, and below it the part after the first token."""
    lanes = [stage for stage in STAGES if run.seconds(stage)]
    figure = new_figure(12, 1.9 + 0.56 * len(lanes))
    end = max(span.start + span.lasted for span in run.spans)
    whole, close = figure.subplots(2, 1, height_ratios=(1, 1))
    _lanes(whole, run, lanes, (0.0, end))
    whole.set_title(f"The whole answer, {seconds(run.total)}", loc="left", fontsize=11)
    first = next(mark.at for mark in run.marks if mark.kind == "token")
    after = [stage for stage in lanes if any(s.start >= first for s in run.spans if s.stage == stage)]
    pad = 0.02 * max(end - first, 1e-3)
    _lanes(close, run, after or lanes[-1:], (first - pad, end + pad))
    close.set_title(f"From the first token on, {seconds(end - first)}", loc="left", fontsize=11)
    close.set_xlabel("seconds since the start")
    _caption(figure, record)
    return png(figure)


def _lanes(axes: Axes, run: Run, lanes: list[str], window: tuple[float, float]) -> None:
    start, end = window
    thinnest = (end - start) / 1500  # a narrower bar would be invisible
    for place, stage in enumerate(lanes):
        bars = [
            (span.start, max(span.lasted, thinnest))
            for span in run.spans
            if span.stage == stage and span.start + span.lasted >= start
        ]
        axes.broken_barh(bars, (place - 0.36, 0.72), color=COLORS[stage], linewidth=0)
    marks = [mark for mark in run.marks if mark.at >= start]
    above = -1.0
    for kind, (sign, color) in _MARK_SIGNS.items():
        times = [mark.at for mark in marks if mark.kind == kind]
        if times:
            title = f"{kind}s: {len(times)}"
            axes.plot(times, [above] * len(times), sign, color=color, markersize=5.5, label=title)
    _tokens(axes, [mark for mark in marks if mark.kind == "token"], above)
    axes.set_yticks(range(len(lanes)), [TITLES[stage] for stage in lanes])
    axes.set_ylim(len(lanes) - 0.4, above - 0.6)
    axes.set_xlim(start, end)
    axes.legend(loc="upper right", bbox_to_anchor=(1, 1.22), ncols=3, frameon=False, fontsize=9)
    plain(axes)
    axes.grid(axis="x", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)


def _tokens(axes: Axes, tokens: list[Mark], above: float) -> None:
    times = [mark.at for mark in tokens]
    axes.plot(
        times, [above] * len(times), "|", color=INK, markersize=9, markeredgewidth=1.1,
        label=f"tokens: {len(times)}", zorder=0,
    )  # fmt: skip


def _stage_label(name: str, stage: Mapping[str, Any]) -> str:
    if "tokens" in stage and name == "prefill":
        return f"{TITLES[name]}, {stage['tokens']} tokens"
    if stage["count"] > 1:
        return f"{TITLES[name]} ×{stage['count']}"
    return TITLES[name]


def _caption(figure: Figure, record: Mapping[str, Any]) -> None:
    synthetic = ", synthetic weights" if record["synthetic"] else ""
    figure.suptitle(heading(record) + synthetic, x=0.01, ha="left", fontsize=13, color=INK)
    machine = setting(record).split(";")[0]
    figure.supxlabel(machine, x=0.01, ha="left", fontsize=9, color=FAINT)


def plain(axes: Axes) -> None:
    """Take away the frame's upper and right side."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(labelsize=9)


def png(figure: Figure) -> bytes:
    """Return the figure as a PNG, the same bytes for the same figure."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
