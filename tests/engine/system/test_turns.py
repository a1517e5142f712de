"""Engines are timed in turns by processor time: a busy machine does not choose between them."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable

import pytest

from lira_engine.system import turns
from lira_engine.system.turns import in_turns, so_many, until_clear


class BusyMachine:
    """Two clocks. Works take `seconds` of processor time, in some rounds more, since caches were disturbed.
    Half of the time other programs run, up to three times as long, which only the wall clock sees."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.processor = self.wall = 0.0

    def work(self, seconds: float) -> Callable[[], None]:
        def run() -> None:
            disturbed = self._random.random() < 0.06
            took = seconds * self._random.uniform(1.0, 1.03) * (1.4 if disturbed else 1.0)
            self.processor += took
            self.wall += took + (self._random.random() < 0.5) * self._random.uniform(0.0, 3.0)

        return run


def _old_choice(machine: BusyMachine, works: list[Callable[[], None]]) -> bool:
    """The best of three wall times each, as builds chose before."""
    best = [float("inf")] * 2
    for _ in range(3):
        for i, work in enumerate(works):
            started = machine.wall
            work()
            best[i] = min(best[i], machine.wall - started)
    return best[0] / best[1] >= 1.1


@pytest.mark.parametrize("faster, worthwhile", [(1.3, True), (1.02, False)])
def test_a_busy_machine_does_not_flip_the_choice(
    faster: float, worthwhile: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, most = [], [], 0
    for seed in range(300):
        machine = BusyMachine(seed)
        monkeypatch.setattr(turns, "clock", lambda machine=machine: machine.processor)
        works = [machine.work(faster), machine.work(1.0)]
        found = in_turns(works, until_clear(1.1))
        new.append(found.speedup() >= 1.1)
        most = max(most, found.rounds)
        old.append(_old_choice(machine, works))
    assert set(new) == {worthwhile}
    assert old.count(not worthwhile) > 20  # what this replaced
    assert most > 3  # some needed more rounds


def _ticking(
    monkeypatch: pytest.MonkeyPatch, *times: list[float]
) -> tuple[list[Callable[[], None]], list[int]]:
    """Return works that take these times one after the other, and the order in which they run."""
    now, order = [0.0], []
    monkeypatch.setattr(turns, "clock", lambda: now[0])

    def work(number: int) -> Callable[[], None]:
        def run() -> None:
            order.append(number)
            now[0] += times[number].pop(0)

        return run

    return [work(number) for number in range(len(times))], order


def test_all_works_run_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    works, order = _ticking(monkeypatch, [2.0, 20.0, 3.0], [1.0, 10.0, 1.0], [4.0, 40.0, 3.0])
    found = in_turns(works, so_many(3), before=lambda: order.append(9))
    assert order == [9, 0, 9, 1, 9, 2] * 3
    assert found.seconds == ((2, 20, 3), (1, 10, 1), (4, 40, 3))
    # The second round was slow for all of them: ratios do not see it.
    assert found.ratios(1) == [2, 2, 3] and found.speedup() == 2 and found.speedup(2) == 0.5
    assert found.typical() == [3, 1.5, 6]


def test_another_timer_takes_the_place_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    works, _ = _ticking(monkeypatch, [2.0], [1.0])
    halves = iter([0.0, 0.5, 1.0, 3.0])
    assert in_turns(works, so_many(1), timer=lambda: next(halves)).seconds == ((0.5,), (2.0,))


def test_clear_choices_end_early_and_unclear_ones_at_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    works, _ = _ticking(monkeypatch, [2.0] * 20, [1.0] * 20)
    assert in_turns(works, until_clear(1.1)).rounds == 3
    works, _ = _ticking(monkeypatch, [1.0] * 20, [1.0] * 20)
    assert in_turns(works, until_clear(1.1)).rounds == 3
    works, _ = _ticking(monkeypatch, [1.0, 2.0] * 10, [1.0] * 20)
    found = in_turns(works, until_clear(1.1))
    assert found.rounds == 15 and found.speedup() == 1.0  # eight of fifteen


def test_a_speedup_of_just_the_threshold_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a build compares it (WORTHWHILE)."""
    works, _ = _ticking(monkeypatch, [1.0, 1.0, 2.0, 0.5], [1.0] * 4)
    assert in_turns(works, until_clear(1.0)).rounds == 3


@pytest.mark.skipif(sys.platform == "win32", reason="its clock is the wall's")
def test_waiting_is_no_processor_time() -> None:
    found = in_turns([lambda: time.sleep(0.05), lambda: sum(range(1000))], so_many(1))
    assert found.seconds[0][0] < 0.04
