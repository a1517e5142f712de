"""Whether the machine was quiet while a benchmark ran: without that, its figures are only lower bounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lira_engine.errors import LiraError
from lira_engine.system.load import Load

_LEAVE_OUT = "leave --require-quiet out"


@dataclass(frozen=True)
class Quiet:
    """The load before, during and after the measured answers; None where it is unknown."""

    before: Load | None
    during: Load | None
    after: Load | None

    def text(self) -> str:
        """Return "quiet", "busy: ..." of the worst of the three, or why it is unknown. Quiet is only what is
        known to be quiet all the time."""
        named = ((self.during, ""), (self.before, " before the runs"), (self.after, " after the runs"))
        known = [(load, when) for load, when in named if load is not None]
        busy = [(load, when) for load, when in known if not load.quiet]
        if busy:
            worst, when = max(busy, key=lambda one: one[0].lost)
            return worst.text() + when
        if len(known) == len(named):
            return "quiet"
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
        return {"quiet": self.quiet, "text": self.text(), **found}


def require_quiet_now(load: Load | None) -> None:
    """Raise LiraError if the machine is not quiet, before anything is measured."""
    if load is None:
        raise LiraError(f"this system does not tell how busy it is, expected Linux: {_LEAVE_OUT}")
    if not load.quiet:
        raise LiraError(
            f"the machine is {load.text()}; expected a quiet one: wait for the others, or {_LEAVE_OUT}"
        )


def require_quiet(texts: list[str], where: object) -> None:
    """Raise LiraError if one of these is not "quiet", after all was measured and written to `where`."""
    for text in texts:
        if text != "quiet":
            raise LiraError(
                f"the load was not quiet but {text}; the figures in {where} say so: measure again with "
                f"--overwrite, or {_LEAVE_OUT}"
            )
