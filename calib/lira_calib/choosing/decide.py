"""Decide how every unit is stored: as asked, or by a search within a budget."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lira_calib.choosing.assemble import Storage, Unit, unit_key
from lira_calib.choosing.search import FLOAT, Candidate, Choice, Found, Option, search
from lira_calib.choosing.sensitivity import Effect, Memo, UnitScore, measure_effects

Seconds = Mapping[str, Mapping[str, float]]
"""By unit and option: the seconds of its matmuls in an average answer. FLOAT is the first option; the others
follow in the order of their errors, the smallest first."""
WORTH = 0.95
"""An option has to take at most this share of the time of those with smaller errors: measured times vary."""

NO_FASTER = "no form is faster than float"
BEYOND = "beyond the budget"
NOT_ASKED = "asked to stay float"
NOT_FINITE = "its outputs are not finite"


@dataclass(frozen=True)
class Decision:
    """How every unit is stored, and why.

    Attributes:
        choice: option by unit. floats: why, of each unit that stays a float. effects: of units alone.
        record: for the recipe: what was measured, what the search tried and what it cost.
    """

    choice: Choice
    floats: dict[str, str]
    effects: list[Effect] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)


def as_asked(units: Iterable[Unit], asked: Callable[[Unit], Storage | None]) -> Decision:
    """Return the decision without a search: what is asked for each unit, None for a float."""
    choice, floats = {}, {}
    for unit in units:
        storage = asked(unit)
        choice[unit_key(unit)] = FLOAT if storage is None else storage.name
        if storage is None:
            floats[unit_key(unit)] = NOT_ASKED
    return Decision(choice, floats, record={"method": "as asked"})


@dataclass(frozen=True)
class Measures:
    """What a search asks for. `effect`: a score of the choice in which few units are quantized, on some
    sequences; `share`: of the budget that a whole choice takes, on all of them."""

    effect: Callable[[Choice], UnitScore]
    share: Callable[[Choice], float]


def by_search(
    units: Sequence[Unit],
    seconds: Seconds,
    measures: Measures,
    memo: Memo,
    whole_stages: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Decision:
    """Return the fastest decision that was found within the budget.

    `whole_stages`: decide about stages, not about units: all units of a stage for which an option is faster
    get it. Results are kept in `memo`.
    """
    started = time.perf_counter()
    measured_before = len(memo.known)
    keys = [unit_key(unit) for unit in units]
    groups: dict[str, list[str]] = {}
    for unit, key in zip(units, keys, strict=True):
        groups.setdefault(unit.stage if whole_stages else key, []).append(key)
    faster = {key: faster_options(seconds[key]) for key in keys}
    offered = {name: _times(members, seconds, faster) for name, members in groups.items()}

    def expanded(choice: Mapping[str, str]) -> Choice:
        return {
            key: option if option in faster[key] else FLOAT
            for name, option in choice.items()
            for key in groups[name]
        }

    asked = [(name, option) for name, options in offered.items() for option in options]
    effects = measure_effects(
        asked, lambda name, option: measures.effect(expanded({name: option})), memo, progress
    )
    harms = {(effect.unit, effect.option): effect.harm for effect in effects}
    candidates = [
        Candidate(
            name,
            (
                Option(FLOAT, sum(seconds[key][FLOAT] for key in groups[name])),
                *(Option(one, cost, harms[name, one]) for one, cost in options.items()),
            ),
        )
        for name, options in offered.items()
    ]

    def share_of(choice: Choice) -> float:
        whole = expanded(choice)
        found = memo.remember(f"share {_digest(whole)}", lambda: _finite(measures.share(whole)))
        return float("inf") if found is None else float(found)

    found = search(candidates, share_of)
    choice = expanded(found.choice)
    floats = {key: _why(key, seconds, faster[key], harms, groups) for key in keys if choice[key] == FLOAT}
    spent = {
        "seconds": round(time.perf_counter() - started, 1),
        "measured": len(memo.known) - measured_before,
    }
    return Decision(choice, floats, effects, _record(found, candidates, effects, spent))


def faster_options(of_unit: Mapping[str, float]) -> list[str]:
    """Return the options of a unit that are worth their errors: clearly faster than float and than all
    options before them."""
    found, best = [], of_unit[FLOAT]
    for option, seconds in of_unit.items():
        if option != FLOAT and seconds <= WORTH * best:
            found.append(option)
            best = seconds
    return found


def _times(members: Sequence[str], seconds: Seconds, faster: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return the options that are worth it for one of the units, with the seconds of all of them; units for
    which an option is not worth it stay floats under it."""
    names = dict.fromkeys(option for key in members for option in faster[key])
    return {
        name: sum(seconds[key][name if name in faster[key] else FLOAT] for key in members) for name in names
    }


def _why(
    key: str,
    seconds: Seconds,
    faster: Sequence[str],
    harms: Mapping[tuple[str, str], float],
    groups: Mapping[str, Sequence[str]],
) -> str:
    """Return why a unit stays a float after a search."""
    if len(seconds[key]) == 1:
        return NOT_ASKED
    if not faster:
        return NO_FASTER
    (name,) = (name for name, members in groups.items() if key in members)
    if all(harms[name, option] == float("inf") for option in faster):
        return NOT_FINITE
    return BEYOND


def _record(
    found: Found, candidates: Sequence[Candidate], effects: Sequence[Effect], spent: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what `recipe.json` keeps of the search."""
    return {
        "method": "search",
        "cost": dict(spent),
        "budget_taken": round(found.share, 4),
        "matmul_seconds": {
            "float": sum(one.option(FLOAT).seconds for one in candidates),
            "chosen": found.seconds,
        },
        "evaluations": [{**asdict(one), "share": _finite(round(one.share, 4))} for one in found.evaluations],
        "units": {
            one.unit: {option.name: round(option.seconds, 9) for option in one.options} for one in candidates
        },
        "effects": [effect.as_dict() for effect in effects],
    }


def _finite(value: float) -> float | None:
    """Return a number as strict JSON takes it: None for one that is not finite."""
    return value if math.isfinite(value) else None


def _digest(choice: Choice) -> str:
    return hashlib.sha256(json.dumps(sorted(choice.items())).encode()).hexdigest()[:24]
