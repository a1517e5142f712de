"""Readings of a block of work, by sensors without a clock of their own."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from lira_engine.system.card import watch
from lira_engine.system.card.sensors import Reading
from lira_engine.system.card.watch import Watch


class Sensors:
    """Ends `enough` after so many looks, which never wait."""

    def __init__(self, enough: int, energies: Any, shares: Any = ()) -> None:
        self.enough, self.looks, self.reached = enough, 0, threading.Event()
        self._energies, self._shares = iter(energies), iter(shares)
        self.polls = 0
        self.threads: set[int] = set()

    def read(self) -> Reading:
        self.looks += 1
        self.threads.add(threading.get_ident())
        if self.looks >= self.enough:
            self.reached.set()
        return Reading(clock_mhz=self.looks)

    def energy_j(self) -> float | None:
        return next(self._energies)

    def others(self) -> Mapping[str, float] | None:
        self.polls += 1
        return next(self._shares, None)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(watch, "_PERIOD", 0.0)
    yield


def watched(sensors: Sensors) -> Watch:
    with Watch(sensors) as found:  # type: ignore[arg-type]
        assert sensors.reached.wait(30)
    return found


def test_readings_begin_and_end_with_the_block() -> None:
    sensors = Sensors(5, (100.0, 160.0))
    found = watched(sensors)
    looks = sensors.looks
    assert [one.clock_mhz for one in found.readings] == list(range(1, looks + 1)) and looks > 5
    assert threading.get_ident() not in sensors.threads and len(sensors.threads) == 1
    assert found.energy_j == 60 and found.seconds > 0 and 0 < found.cpu_s < 30
    assert found.others is None
    in_the_block = looks // 10 + (looks % 10 > 0)  # the last look is one of them
    assert sensors.polls == 1 + in_the_block  # once a second, and once before


def test_a_block_that_is_over_at_once_has_two_readings() -> None:
    sensors = Sensors(1, (None, None))
    with Watch(sensors) as found:  # type: ignore[arg-type]
        sensors.reached.wait(30)
    assert len(found.readings) >= 2


@pytest.mark.parametrize("energies", [(None, None), (None, 5.0), (5.0, None), (900.0, 10.0)])
def test_a_counter_that_is_missing_or_began_anew_tells_nothing(energies: tuple[float | None, ...]) -> None:
    assert watched(Sensors(1, energies)).energy_j is None


def test_shares_of_others_are_means_and_what_was_before_does_not_count() -> None:
    """The first answer is from before the block; a program that is not named used nothing."""
    sensors = Sensors(20, (None, None), [{"old": 1.0}, {"a": 0.6, "b": 0.2}, {"a": 0.2}])
    with Watch(sensors) as found:  # type: ignore[arg-type]
        assert sensors.reached.wait(30)
    assert found.others is not None and "old" not in found.others
    polls = 2
    assert found.others == pytest.approx({"a": 0.8 / polls, "b": 0.2 / polls})


def test_an_error_in_the_thread_is_not_lost() -> None:
    class Broken(Sensors):
        def read(self) -> Reading:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"), Watch(Broken(1, (None, None))):  # type: ignore[arg-type]
        pass


def test_an_error_in_the_block_ends_the_thread() -> None:
    sensors = Sensors(1, (None, None))
    with pytest.raises(KeyError), Watch(sensors):  # type: ignore[arg-type]
        raise KeyError
    looks = sensors.looks
    assert not any(one.ident in sensors.threads for one in threading.enumerate())
    assert sensors.looks == looks
