"""The card that a benchmark ran on: its clocks, power, energy and memory, and what others did with it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from lira_engine.errors import LiraError
from lira_engine.system.card.first_gpu import first_gpu
from lira_engine.system.card.opening import open_sensors
from lira_engine.system.card.sensors import Facts, Reading, Sensors
from lira_engine.system.card.watch import Watch
from lira_engine.system.machine import gpus, jetson

QUIET = 0.05
"""Share of a card: what drawing a desktop takes. More than that is a disturbance."""
IDLE_SECONDS = 1.2
"""A card tells its load of the last second at most: after this time that is nothing of before."""

_COUNTER_FROM, _MEAN_POWER_FROM = 1.0, 3.0
"""Seconds: counters of energy go on in steps, and power is a mean over the last second on most cards."""


@dataclass(frozen=True)
class CardLoad:
    """What other programs did with the card; shares, None where it does not tell.

    Attributes:
        before, after: that any program used, while this one waited.
        during: that others used, by name.
    """

    before: float | None
    during: Mapping[str, float] | None = None
    after: float | None = None

    @property
    def known(self) -> bool:
        """Whether the card told its load before and after; not every card tells who uses it meanwhile."""
        return self.before is not None and self.after is not None

    def busy(self) -> str | None:
        """Return "busy: others used 40 % of the card (python 38 %)" if they used too much, or None."""
        named = self.during or {}
        shares = [
            (sum(named.values()), ""),
            (self.before, " before the runs"),
            (self.after, " after the runs"),
        ]
        known = [(share, when) for share, when in shares if share is not None and share > QUIET]
        if not known:
            return None
        share, when = max(known)
        names = ", ".join(f"{name} {100 * part:.0f} %" for name, part in named.items()) if not when else ""
        return f"busy: others used {100 * share:.0f} % of the card{f' ({names})' if names else ''}{when}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        during = None if self.during is None else {name: round(part, 3) for name, part in self.during.items()}
        return {"before": self.before, "during": during, "after": self.after}


@dataclass(frozen=True)
class Watched:
    """What was read while the answers were measured."""

    readings: Sequence[Reading]
    seconds: float
    energy_j: float | None = None
    others: Mapping[str, float] | None = None
    cpu_s: float = 0.0


@dataclass
class Card:
    """The sensors of a benchmark.

    Attributes:
        on_gpu: whether the engines run on the GPU. sensors: None where there are none, or none are needed.
        note: why there are none. used_before: MiB of the card's memory that all programs had, before this one
            had any. watched: what was read while the answers were measured.
    """

    on_gpu: bool
    sensors: Sensors | None = None
    note: str | None = None
    used_before: float | None = None
    watched: Watched = field(default_factory=lambda: Watched((), 0.0))

    def busy(self) -> float | None:
        """Return which share of the card any program uses now."""
        return None if self.sensors is None else self.sensors.busy()

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Read the sensors while the block runs."""
        if self.sensors is None:
            yield
            return
        with Watch(self.sensors) as found:
            yield
        self.watched = Watched(found.readings, found.seconds, found.energy_j, found.others, found.cpu_s)

    def record(self, answers: int) -> dict[str, Any] | None:
        """Return the record for JSON, after `answers` answers were watched; None for engines on a CPU whose
        power nothing tells."""
        if not self.on_gpu and self.sensors is None:
            return None
        facts = _known_without() if self.sensors is None else self.sensors.facts
        watched, readings = self.watched, self.watched.readings
        found: dict[str, Any] = {
            **asdict(facts),
            **_memory(readings, self.used_before),
            "clock_mhz": _spread(readings, "clock_mhz"),
            "memory_clock_mhz": _spread(readings, "memory_clock_mhz"),
            "power_w": _power(readings),
            "temperature_c": _largest(readings, "temperature_c"),
            "throttled": _throttled(readings),
            "energy_j_per_answer": _energy(watched, answers),
            "energy_of": None if self.sensors is None else self.sensors.power_of,
            "source": None if self.sensors is None else self.sensors.source,
            "note": self.note,
            "samples": {"count": len(readings), "seconds": watched.seconds, "cpu_s": watched.cpu_s},
        }
        if not self.on_gpu:  # of a board only the power is the engines'
            names = ("clock_mhz", "memory_clock_mhz", "throttled", "peak_memory_mib", "peak_memory_of")
            found |= dict.fromkeys(names)
        if found["energy_j_per_answer"] is None and found["power_w"] is None:
            found["energy_of"] = None
        return found


@contextmanager
def open_card(on_gpu: bool) -> Iterator[Card]:
    """Open the sensors of the GPU or of the board for a block, before any engine is opened."""
    card = Card(on_gpu)
    in_use = on_gpu and first_gpu().in_use
    try:
        card.sensors = open_sensors(on_gpu)
    except LiraError as error:
        card.note = str(error)
    if card.sensors is None:
        yield card
        return
    try:
        card.used_before = None if in_use else card.sensors.read().used_mib
        yield card
    finally:
        card.sensors.close()


def _known_without() -> Facts:
    """Return what the system knows without sensors: of a board, or of the only card."""
    board, cards = jetson(), gpus()
    if board is not None:
        return Facts(board.model, None, f"L4T {board.l4t}")
    if len(cards) != 1:
        return Facts()
    amount = cards[0].memory.removesuffix(" MiB")
    memory = int(amount) if amount.isdigit() else None
    return Facts(cards[0].name, memory, cards[0].driver, cards[0].compute_capability)


def _values(readings: Sequence[Reading], name: str) -> list[Any]:
    return [value for one in readings if (value := getattr(one, name)) is not None]


def _spread(readings: Sequence[Reading], name: str) -> dict[str, float] | None:
    values = _values(readings, name)
    if not values:
        return None
    return {"median": statistics.median(values), "smallest": min(values), "largest": max(values)}


def _power(readings: Sequence[Reading]) -> dict[str, float] | None:
    values = _values(readings, "power_w")
    return {"mean": statistics.fmean(values), "largest": max(values)} if values else None


def _largest(readings: Sequence[Reading], name: str) -> dict[str, float] | None:
    values = _values(readings, name)
    return {"largest": max(values)} if values else None


def _throttled(readings: Sequence[Reading]) -> list[str] | None:
    values: list[frozenset[str]] = _values(readings, "throttled")
    return sorted(frozenset().union(*values)) if values else None


def _memory(readings: Sequence[Reading], before: float | None) -> dict[str, Any]:
    """Return the most memory that this process had; where the card does not tell that of a process, what all
    programs together had more than before."""
    own, used = _values(readings, "own_mib"), _values(readings, "used_mib")
    if own:
        return {"peak_memory_mib": round(max(own)), "peak_memory_of": "process"}
    if used and before is not None and max(used) > before:
        return {"peak_memory_mib": round(max(used) - before), "peak_memory_of": "card"}
    return {"peak_memory_mib": None, "peak_memory_of": None}


def _energy(watched: Watched, answers: int) -> float | None:
    if watched.energy_j is not None and watched.seconds >= _COUNTER_FROM:
        return watched.energy_j / answers
    power = _power(watched.readings)
    if power is not None and watched.seconds >= _MEAN_POWER_FROM:
        return power["mean"] * watched.seconds / answers
    return None
