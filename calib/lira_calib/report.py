"""Say what a calibration found: a table of the stages, and why weights stay floats."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lira_calib.choosing.assemble import MOST_SPREAD, row_by_row, unit_key
from lira_calib.choosing.budget import METRICS
from lira_calib.choosing.search import FLOAT
from lira_engine.bundle.manifest import STAGES
from lira_engine.system.machine import peak_rss_mib

if TYPE_CHECKING:
    from lira_calib.calibrate import Result
    from lira_calib.choosing.latency import Latency

FORMAT = "lira-calibrate-figures"
FORMAT_VERSION = 1
_TIMES = {"llm": ("prefill", "decode")}


def print_result(console: Console, result: Result) -> None:
    """Print the stages with their forms, sizes and times before and after, then what was decided and why."""
    if not console.is_terminal:
        console.width = 160
    table = Table(box=None, pad_edge=False, title_justify="left")
    for name in ("stage", "weights", "MiB", "", "ms", "", "x"):
        table.add_column(name, justify="left" if name in ("stage", "weights") else "right")
    for stage in STAGES:
        for row in _rows(result, stage):
            table.add_row(*row)
    console.print(table)
    for line in (*lines(result), *result.told):
        console.print(line, soft_wrap=True)


def lines(result: Result) -> list[str]:
    """Return what the table does not show, a line each."""
    score, recipe = result.score, result.recipe
    found = [
        f"{METRICS[name]} {100 * score.metric(name):.2f} % (fp32 {100 * score.reference(name):.2f} %)"
        for name in METRICS
    ]
    told = ["ms: processor time of one thread"] if result.latencies else []
    told += [f"on the {len(score.sequences)} questions that it was calibrated on: {', '.join(found)}"]
    kept = Counter(reason for reasons in result.kept.values() for reason in reasons.values())
    told += [f"floats: {_many(count, 'weight')}: {reason}" for reason, count in kept.most_common()]
    floats = Counter(result.decision.floats.values())
    told += [f"floats: {_many(count, 'unit')}: {reason}" for reason, count in floats.most_common()]
    spreads = recipe.search["spreads"]
    if spreads:
        told.append(
            f"{_many(len(spreads), 'weight')} got no w8a8: a row of the input is more than {MOST_SPREAD:g} "
            f"times a typical one ({', '.join(list(spreads)[:3])}{', ...' if len(spreads) > 3 else ''})"
        )
    if "llm" in recipe.stages and "prefill" not in result.latencies:
        told.append("the language model is too large here to be timed in fp32 as a whole")
    cost = result.decision.record.get("cost")
    if cost is not None and recipe.budget is not None:
        taken = result.decision.record["budget_taken"]
        on = recipe.search["timed_on"]
        where = f"times predicted for {on}" if recipe.search["asked"]["device"] else f"times measured on {on}"
        told.append(
            f"the search took {cost['seconds']:.0f} s and measured {cost['measured']} recipes; {where}; "
            f"it takes {100 * taken:.0f} % of the budget {recipe.budget.text}"
        )
        matmuls = result.decision.record["matmul_seconds"]
        told.append(
            f"matmuls of an average answer: {matmuls['float']:.3g} s in float, {matmuls['chosen']:.3g} s as "
            "chosen"
        )
    spent = sum(result.seconds.values())
    peak = peak_rss_mib()
    memory = "" if peak is None else f", {peak} MiB at most"
    told.append(f"wrote {result.folder} in {spent:.0f} s{memory}")
    return told


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def figures(result: Result) -> dict[str, Any]:
    """Return what `--json` gives to scripts."""
    recipe = result.recipe
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "recipe": str(result.folder),
        "digest": recipe.digest,
        "bundle": recipe.bundle,
        "budget": None if recipe.budget is None else recipe.budget.text,
        "choice": result.decision.choice,
        **{key: recipe.search[key] for key in ("score", "stages", "timed_on", "seconds", "peak_rss_mib")},
        "cost": result.decision.record.get("cost"),
    }


def _rows(result: Result, stage: str) -> list[tuple[str, ...]]:
    """Return the rows of a stage: a time each."""
    forms, spread = Counter[str](), result.recipe.search["spreads"]
    for unit in result.units:
        if unit.stage == stage:
            for weight in unit.weights:
                if f"{stage}/{weight}" in spread:
                    instead = row_by_row(stage)
                    forms[FLOAT if instead is None else instead.text()] += 1
                else:
                    forms[result.decision.choice[unit_key(unit)]] += 1
    forms[FLOAT] += len(result.kept[stage])
    weights = ", ".join(f"{count} {name}" for name, count in forms.most_common() if count)
    rows: list[tuple[str, ...]] = []
    for name in _TIMES.get(stage, (stage,)):
        found = result.latencies.get(name)
        title = stage if name == stage else f"{stage} {name}"
        rows.append((title, weights if not rows else "", *_cells(found, with_size=not rows)))
    return rows


def _cells(found: Latency | None, with_size: bool) -> tuple[str, ...]:
    if found is None:
        return ("",) * 5
    sizes = (f"{found.bytes_before / 2**20:.1f}", f"{found.bytes_after / 2**20:.1f}")
    times = (f"{1e3 * found.before:.2f}", f"{1e3 * found.after:.2f}", f"{found.before / found.after:.2f}")
    return (*(sizes if with_size else ("", "")), *times)
