"""Whether the machine was quiet while a benchmark ran: without that, its figures are only lower bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lira_bench.speed.card import CardLoad
from lira_engine.errors import LiraError
from lira_engine.system.load import Load

_LEAVE_OUT = "leave --require-quiet out"


@dataclass(frozen=True)
class Quiet:
    """The load before, during and after the measured answers; None where it is unknown. `card`: of the card
    that they ran on; None for engines on a CPU."""

    before: Load | None
    during: Load | None
    after: Load | None
    card: CardLoad | None = None

    def text(self) -> str:
        """Return "quiet", "busy: ..." of the card or of the worst of the three, or why it is unknown. Quiet
        is only what is known to be quiet all the time."""
        if self.card is not None and (busy_card := self.card.busy()):
            return busy_card
        named = ((self.during, ""), (self.before, " before the runs"), (self.after, " after the runs"))
        known = [(load, when) for load, when in named if load is not None]
        busy = [(load, when) for load, when in known if not load.quiet]
        if busy:
            worst, when = max(busy, key=lambda one: one[0].lost)
            return worst.text() + when
        if len(known) == len(named):
            told = self.card is None or self.card.known
            return "quiet" if told else "unknown: the card does not tell how busy it is"
        return "unknown: the runs were too short to tell" if known else "unknown: the system does not tell"

    @property
    def quiet(self) -> bool | None:
        """Return whether it was quiet; None if that is unknown."""
        told = self.text()
        return None if told.startswith("unknown") else told == "quiet"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        loads = {"before": self.before, "during": self.during, "after": self.after}
        found = {name: None if load is None else load.as_dict() for name, load in loads.items()}
        card = None if self.card is None else self.card.as_dict()
        return {"quiet": self.quiet, "text": self.text(), **found, "card": card}


def require_quiet_now(load: Load | None, card: CardLoad | None = None, note: str | None = None) -> None:
    """Raise LiraError if the machine or the card is not quiet, before anything is measured. `note`: why the
    card does not tell."""
    if load is None:
        raise LiraError(f"this system does not tell how busy it is, expected Linux: {_LEAVE_OUT}")
    if card is not None and card.before is None:
        reason = f" ({note})" if note else ""
        raise LiraError(f"this card does not tell how busy it is{reason}: {_LEAVE_OUT}")
    told = (card and card.busy()) or load.text()
    if told != "quiet":
        told = told.removesuffix(" before the runs")
        raise LiraError(f"the machine is {told}; expected a quiet one: wait for the others, or {_LEAVE_OUT}")


def require_quiet(texts: list[str], where: object) -> None:
    """Raise LiraError if one of these is not "quiet", after all was measured and written to `where`."""
    for text in texts:
        if text != "quiet":
            raise LiraError(
                f"the load was not quiet but {text}; the figures in {where} say so: measure again with "
                f"--overwrite, or {_LEAVE_OUT}"
            )
