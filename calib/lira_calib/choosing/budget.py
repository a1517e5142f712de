"""`--budget "cIoU -0.5%"`: what quantizing may cost, and how much of that a score takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lira_engine.engines.recipe import Budget
from lira_engine.errors import LiraError

METRICS = {
    "ciou": "cIoU",
    "iou": "IoU",
    "tokens": "tokens",
}
"""By name: as it is written. cIoU is that of the masks with the truth, of teacher-forced answers; IoU that of
the masks with those of fp32; tokens is the share of next tokens that are those of fp32."""
OTHER_TOKENS = 0.01
"""The largest share of other tokens under a budget for masks. Masks are compared in answers whose tokens are
given, so that they say nothing about the text."""
DRAWS = 200
SURE = 0.84
"""Share of the resamples in which a fall has to be within the limit: about one standard error to spare, since
builds are judged on other pictures."""

_FORM = re.compile(r"\s*(?P<metric>[A-Za-z]+)\s*(?P<sign>[-\u2212])\s*(?P<points>\d+(?:\.\d+)?)\s*%\s*")
_EXPECTED = 'expected a metric and how many points it may fall, such as "cIoU -0.5%"'


class Rated(Protocol):
    """A score of a recipe (`lira_calib.scoring.scores.Score`): a metric with the recipe, and in fp32; and the
    score on some of the sequences, by number."""

    @property
    def sequences(self) -> Sized: ...
    def metric(self, name: str) -> float: ...
    def reference(self, name: str) -> float: ...
    def of(self, numbers: Iterable[int]) -> Rated: ...


@dataclass(frozen=True)
class Use:
    """How much of a budget a score takes.

    Attributes:
        falls: of each metric, as a share of 1. likely: the fall that SURE of the resamples of the sequences
            stay below. limits: the largest allowed.
    """

    falls: dict[str, float]
    likely: dict[str, float]
    limits: dict[str, float]

    @property
    def share(self) -> float:
        """The share of its limit that the likely fall of the worst metric takes; at most 1 is within."""
        return max(self.likely[name] / limit for name, limit in self.limits.items())

    @property
    def within(self) -> bool:
        return self.share <= 1


def parse_budget(text: str) -> Budget:
    """Return the budget that `text` states. Percent are points: 90.0 % may become 89.5 % under -0.5%.

    Raises LiraError for another form, an unknown metric, and a fall of 0 % or of more than 100 %.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise LiraError(f"--budget {text!r}: {_EXPECTED}")
    metric = found["metric"].lower()
    if metric not in METRICS:
        known = ", ".join(METRICS.values())
        raise LiraError(f"--budget {text!r}: {found['metric']} is no metric; expected one of {known}")
    points = float(found["points"])
    if not 0 < points <= 100:
        raise LiraError(f"--budget {text!r}: {points:g} % can never be kept or missed; {_EXPECTED}")
    return Budget(f"{METRICS[metric]} -{points:g}%", metric, points / 100)


def limits(budget: Budget) -> dict[str, float]:
    """Return the largest fall of each metric that the budget bounds: its own, and that of the tokens."""
    found = {budget.metric: budget.loss}
    found.setdefault("tokens", max(budget.loss, OTHER_TOKENS))
    return found


def use(budget: Budget, score: Rated) -> Use:
    """Return what a score takes of the budget. A metric that rose takes nothing."""
    bounds = limits(budget)
    falls = {name: _fall(score, name) for name in bounds}
    drawn = [score.of(numbers) for numbers in _draws(len(score.sequences))]
    likely = {
        name: max(fall, float(np.quantile([_fall(one, name) for one in drawn], SURE)))
        for name, fall in falls.items()
    }
    return Use(falls, likely, bounds)


def _fall(score: Rated, name: str) -> float:
    return max(0.0, score.reference(name) - score.metric(name))


def _draws(count: int) -> Sequence[Sequence[int]]:
    """Return the numbers of the sequences of each resample, the same ones each time."""
    found: list[list[int]] = np.random.default_rng(0).integers(0, count, size=(DRAWS, count)).tolist()
    return found
