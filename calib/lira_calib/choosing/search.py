"""Find the fastest way to store every unit that stays within a budget.

A unit is a block of a stage whose weights are stored alike. What an option costs in time was measured, what
it does to the answers was measured for the unit alone; both only order the options. Whether a whole choice
is within the budget is always measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

FLOAT = "float"
"""The option that leaves a unit as it is."""
MOST_EVALUATIONS = 24
"""Evaluations of whole choices; bisecting needs the logarithm of the number of units, the rest tries to take
units back."""


@dataclass(frozen=True)
class Option:
    """One way to store a unit. `seconds`: of its matmuls in an answer. `harm`: what it alone does to answers,
    0 for FLOAT."""

    name: str
    seconds: float
    harm: float = 0.0


@dataclass(frozen=True)
class Candidate:
    """A unit and its options; FLOAT is one of them."""

    unit: str
    options: tuple[Option, ...]

    def option(self, name: str) -> Option:
        return next(one for one in self.options if one.name == name)


Choice = dict[str, str]
"""The name of an option by unit."""


@dataclass(frozen=True)
class Evaluated:
    """A choice that was measured. `seconds`: of all units' matmuls. `share`: of the budget that it takes."""

    seconds: float
    share: float
    quantized: int
    step: str


@dataclass(frozen=True)
class Found:
    """The chosen options, the share of the budget that they take, and every evaluation in its order."""

    choice: Choice
    share: float
    seconds: float
    evaluations: tuple[Evaluated, ...] = field(default=())


def search(
    candidates: Sequence[Candidate],
    share_of: Callable[[Choice], float],
    most: int = MOST_EVALUATIONS,
) -> Found:
    """Return the fastest choice that was found within the budget.

    `share_of` measures which share of the budget a choice takes: at most 1 is within it. Begins with the
    fastest option of every unit. While that is too much, gives back what harms most per second that it saves;
    bisects for how much. Then takes back units one by one, those first that save most per harm, while `most`
    allows. All floats are within every budget, and are not measured.
    """
    tried: dict[tuple[tuple[str, str], ...], float] = {}
    evaluations: list[Evaluated] = []

    def within(choice: Choice, step: str) -> bool:
        key = tuple(sorted(choice.items()))
        if all(name == FLOAT for name in choice.values()):
            return True
        if key not in tried:
            tried[key] = share_of(choice)
            quantized = sum(name != FLOAT for name in choice.values())
            evaluations.append(Evaluated(seconds_of(candidates, choice), tried[key], quantized, step))
        return tried[key] <= 1

    steps = _steps_back(candidates)
    taken = _fewest_steps(candidates, steps, within)
    choice = _after(candidates, steps[:taken])
    # The last step back was needed, so it is not tried again.
    for step in reversed(steps[: max(taken - 1, 0)]):
        if len(evaluations) >= most:
            break
        if choice[step.unit] != step.slower:
            continue  # a later step of the same unit stands
        changed = {**choice, step.unit: step.faster}
        if within(changed, f"take back {step.unit}"):
            choice = changed
    share = tried.get(tuple(sorted(choice.items())), 0.0)
    return Found(choice, share, seconds_of(candidates, choice), tuple(evaluations))


def seconds_of(candidates: Sequence[Candidate], choice: Mapping[str, str]) -> float:
    """Return the seconds of all units' matmuls under a choice."""
    return sum(one.option(choice[one.unit]).seconds for one in candidates)


def worthwhile(candidate: Candidate) -> Candidate:
    """Return the unit with FLOAT and the options that are faster, harm less than all faster ones, and whose
    gain per harm falls from one to the next: each step from a faster to a slower one then gives back less
    than the one before."""
    floating = candidate.option(FLOAT)
    hull: list[Option] = []
    for one in sorted(candidate.options, key=lambda one: (one.seconds, one.harm)):
        if one.name != FLOAT and (one.seconds >= floating.seconds or one.harm == float("inf")):
            continue
        if hull and one.harm >= hull[-1].harm and one.name != FLOAT:
            continue
        while len(hull) >= 2 and _gain(hull[-2], one) >= _gain(hull[-2], hull[-1]):
            hull.pop()
        hull.append(one)
    return Candidate(candidate.unit, tuple(hull))


@dataclass(frozen=True)
class _Step:
    """A unit's way from a faster option to a slower one that harms less. `relief`: harm per second."""

    unit: str
    faster: str
    slower: str
    relief: float


def _gain(faster: Option, slower: Option) -> float:
    """Return how much harm goes per second that a slower option costs."""
    cost = slower.seconds - faster.seconds
    return (faster.harm - slower.harm) / cost if cost > 0 else float("inf")


def _steps_back(candidates: Sequence[Candidate]) -> list[_Step]:
    """Return the steps from the fastest options to all floats, the one that relieves most first."""
    steps = [
        _Step(one.unit, faster.name, slower.name, _gain(faster, slower))
        for one in map(worthwhile, candidates)
        for faster, slower in zip(one.options, one.options[1:], strict=False)
    ]
    return sorted(steps, key=lambda step: -step.relief)  # stable: equal ones in the order of the units


def _after(candidates: Sequence[Candidate], steps: Sequence[_Step]) -> Choice:
    choice = {one.unit: worthwhile(one).options[0].name for one in candidates}
    for step in steps:
        choice[step.unit] = step.slower
    return choice


def _fewest_steps(
    candidates: Sequence[Candidate], steps: Sequence[_Step], within: Callable[[Choice, str], bool]
) -> int:
    """Return how many steps back bring the choice within the budget, by bisection."""
    if within(_after(candidates, []), "fastest"):
        return 0
    over, kept = 0, len(steps)
    while kept - over > 1:
        middle = (over + kept) // 2
        if within(_after(candidates, steps[:middle]), f"give back {middle} of {len(steps)}"):
            kept = middle
        else:
            over = middle
    return kept
