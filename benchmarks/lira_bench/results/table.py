"""The table of all engines of a machine, for Markdown and the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from lira_bench.results.result import EngineResult, Figures, Results
from lira_bench.speed import report
from lira_bench.speed.report import Table, seconds, significant
from lira_engine.inspect import size_text
from lira_runtime.timings import AUTHORS_TOKENS_PER_SECOND

_RATIO = f"of {AUTHORS_TOKENS_PER_SECOND}"
COLUMNS = (
    "engine", "size", "largest error", "first token", "decode tok/s", _RATIO, "end to end tok/s",
    _RATIO, "peak memory", "energy per answer", "",
)  # fmt: skip
STEADY = 0.05
"""Change of a time over a run of all engines that tells nothing."""
_STATES = {"measured": "", "refused": "refused", "failed": "failed"}


def heading(results: Results) -> str:
    return f"{results.bundle.name}, {results.asked.task}, all engines"


def remarks(results: Results) -> list[str]:
    """Return what a reader must know before the figures."""
    busy = [one.name for one, figures in results.measured if figures.quiet is False]
    unknown = [one.name for one, figures in results.measured if figures.quiet is None]
    record = {
        "synthetic": results.bundle.synthetic,
        "forced": results.asked.forced,
        "is_authors_model": results.bundle.is_authors_model,
        "load": {"quiet": True},
        "card": None,  # which engines it held back is said below
    }
    lines = report.remarks(record)
    if busy:
        lines.append(
            f"Other programs used the cores, or the card, meanwhile ({', '.join(busy)}): the machine is "
            "faster than that."
        )
    if unknown:
        lines.append(f"Whether other programs used the cores is not known ({', '.join(unknown)}).")
    throttled = [one.name for one, figures in results.measured if figures.card and figures.card.throttled]
    if throttled:
        lines.append(f"The card lowered its clocks ({', '.join(throttled)}).")
    if results.drift is not None and abs(results.drift - 1) > STEADY:
        lines.append(
            f"The first engine, measured again at the end, took {results.drift:.2f} of its first time: "
            "smaller differences between engines mean nothing."
        )
    return lines


def setting(results: Results) -> str:
    """Return one line about the machine and what was asked, as `bench` prints it."""
    asked, pictures = results.asked, results.asked.pictures
    record: dict[str, Any] = {
        "machine": asdict(results.machine),
        "decode_traffic": {"of": "host"},  # engines of several devices: all of them are named
        "images": [{"width": pictures.width, "height": pictures.height}] * pictures.count,
        "max_tiles": asked.max_tiles,
        "runs": asked.runs * pictures.count,
        "warmup": asked.warmup,
    }
    return report.setting(record)


def table(results: Results, compared: bool = True) -> Table:
    """Return a row for each engine, those without figures too. `compared`: with the authors' rate."""
    table = (COLUMNS, *(_row(one) for one in results.engines))
    kept = [number for number, title in enumerate(COLUMNS) if compared or title != _RATIO]
    columns, *rows = [[line[number] for number in kept] for line in table]
    return columns, rows


def reasons(results: Results) -> list[str]:
    """Return why engines have no figures, or what is wrong with them."""
    return [f"{one.name}: {one.reason}" for one in results.engines if one.reason]


def notes(results: Results) -> list[str]:
    """Return what the table's cells mean where that is not plain."""
    if any(one.error and one.error.by == "build" for one in results.engines):
        return ["(in brackets: found by the build; `lira-edge verify` was not run since)"]
    return []


def markdown(results: Results) -> str:
    """Return the table with machine, request and reasons."""
    return "\n".join(_markdown(results)).rstrip() + "\n"


def _markdown(results: Results) -> Iterator[str]:
    yield from (f"### {heading(results)}", "")
    for line in remarks(results):
        yield from (line, "")
    yield from (setting(results), "")
    yield from (*report.rows(table(results)), "")
    for line in [*notes(results), *reasons(results)]:
        yield from (" ".join(line.split()), "")
    yield report.AUTHORS[0].upper() + report.AUTHORS[1:] + "."


def _row(one: EngineResult) -> list[str]:
    cells = [one.name, size_cell(one), error_cell(one)]
    if one.figures is None:
        cells += [""] * 7
    else:
        found = one.figures
        cells += [
            seconds(found.ttft_s),
            significant(found.decode_tokens_per_s),
            ratio(found.decode_tokens_per_s),
            significant(found.end_to_end_tokens_per_s),
            ratio(found.end_to_end_tokens_per_s),
            memory_cell(found),
            energy_cell(found),
        ]
    state = "not quiet" if one.figures is not None and one.reason else _STATES[one.status]
    return [*cells, state]


def size_cell(one: EngineResult) -> str:
    return "" if one.bytes is None else size_text(one.bytes)


def error_cell(one: EngineResult) -> str:
    """Return such as "8.3e-02 llm.logits"; in brackets if the build found it, not `lira-edge verify`."""
    if one.error is None:
        return "not checked"
    told = f"{one.error.value:.1e} {one.error.stage}.{one.error.output}"
    return told if one.error.by == "verify" else f"({told})"


def memory_cell(figures: Figures) -> str:
    """Return the process's peak, and the card's behind it."""
    told = [] if figures.peak_rss_mib is None else [f"{figures.peak_rss_mib:,} MiB"]
    if figures.card is not None and figures.card.peak_memory_mib is not None:
        told.append(f"card {figures.card.peak_memory_mib:,.0f} MiB")
    return ", ".join(told) or "not told"


def energy_cell(figures: Figures) -> str:
    card = figures.card
    if card is None or card.energy_j_per_answer is None:
        return "not told"
    return f"{significant(card.energy_j_per_answer)} J" + (f", {card.energy_of}" if card.energy_of else "")


def ratio(rate: float) -> str:
    return f"{significant(rate / AUTHORS_TOKENS_PER_SECOND)}x"
