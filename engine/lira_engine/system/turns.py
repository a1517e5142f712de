"""Time engines in turns, by the processor time of one thread.

Other programs take time from a wall clock. From a processor's clock they take almost none, if a single thread
works: with several, those that wait for one that the system put aside spin, and spinning is processor time.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

clock: Callable[[], float] = time.perf_counter if sys.platform == "win32" else time.thread_time
"""Seconds of the calling thread, in which an engine with one thread runs. Windows counts them in steps of
16 ms: there it is the wall clock."""

_LEAD = 3
_MOST_ROUNDS = 15

Work = Callable[[], object]


@dataclass(frozen=True)
class Turns:
    """Seconds of each work in each round: seconds[work][round]."""

    seconds: tuple[tuple[float, ...], ...]

    @property
    def rounds(self) -> int:
        return len(self.seconds[0])

    def ratios(self, work: int) -> list[float]:
        """Return the time of the first work over that of another, round by round: above 1, it is faster."""
        return [first / other for first, other in zip(self.seconds[0], self.seconds[work], strict=True)]

    def speedup(self, work: int = 1) -> float:
        """Return the median of `ratios`: what slows a whole round down does not change it."""
        return statistics.median(self.ratios(work))

    def typical(self) -> list[float]:
        """Return seconds of each work: the median of the first, and the others by their `speedup`."""
        first = statistics.median(self.seconds[0])
        return [first / self.speedup(work) for work in range(len(self.seconds))]


def in_turns(
    works: Sequence[Work],
    more: Callable[[Turns], bool],
    before: Work = lambda: None,
    timer: Callable[[], float] | None = None,
) -> Turns:
    """Time all works in every round, one after the other, until `more` says no; `before` runs before each,
    untimed. `timer` instead of `clock`: for works that wait for other processes."""
    timer = timer or clock
    seconds: list[list[float]] = [[] for _ in works]
    while True:
        for work, times in zip(works, seconds, strict=True):
            before()
            started = timer()
            work()
            times.append(timer() - started)
        turns = Turns(tuple(map(tuple, seconds)))
        if not more(turns):
            return turns


def so_many(count: int) -> Callable[[Turns], bool]:
    """Return a `more` for `count` rounds."""
    return lambda turns: turns.rounds < count


def until_clear(threshold: float) -> Callable[[Turns], bool]:
    """Return a `more` that stops when the speedup of the second work is clear: when three rounds more are on
    one side of `threshold` than on the other, after 15 rounds at the latest.

    If one round in ten is on the wrong side by accident, the choice is wrong once in 730 times.
    """

    def more(turns: Turns) -> bool:
        lead = sum(1 if ratio >= threshold else -1 for ratio in turns.ratios(1))
        return abs(lead) < _LEAD and turns.rounds < _MOST_ROUNDS

    return more
