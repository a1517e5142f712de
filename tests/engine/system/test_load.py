"""What other programs did meanwhile, from readings of /proc."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lira_engine.system import load
from lira_engine.system.load import Load, Reading, between, reading


def proc(root: Path, stat: str, processes: dict[int, tuple[int, str, int, int]]) -> Path:
    """Write /proc: processes are number -> parent, name, ticks of its own and of children that ended."""
    root.mkdir(exist_ok=True)
    (root / "stat").write_text(stat)
    for number, (parent, name, own, ended) in processes.items():
        (root / str(number)).mkdir(exist_ok=True)
        fields = ["S", str(parent), *["0"] * 9, str(own), "0", str(ended), "0", *["0"] * 30]
        (root / str(number) / "stat").write_text(f"{number} ({name}) {' '.join(fields)}\n")
    return root


def test_a_reading_knows_this_process_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2})
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    monkeypatch.setattr(os, "getpid", lambda: 50)
    stat = (
        "cpu  9 9 9 9 9 9 9 9 9 9\n"
        "cpu0 100 20 30 5000 700 1 2 40 3 4\n"
        "cpu1 9999 0 0 0 0 0 0 9999 0 0\n"  # not ours to run on
        "cpu2 200 0 0 5000 0 0 0 60 0 0\n"
        "intr 1\n"
    )
    processes = {
        1: (0, "init", 500, 900),
        50: (1, "python", 100, 30),
        51: (50, "our worker", 20, 0),
        52: (51, "its child", 3, 0),
        60: (1, "a (strange) name", 70, 0),
    }
    folder = proc(tmp_path / "proc", stat, processes)
    (folder / "self").mkdir()
    (folder / "70").mkdir()  # ended while it was read
    found = reading(folder)
    assert found is not None and (found.cores, found.busy, found.stolen) == (2, 3.53, 1.0)
    assert found.own == pytest.approx(1.53)  # with what it started
    assert found.programs == {1: ("init", 5.0), 60: ("a (strange) name", 0.7)}


def test_a_system_without_counters_tells_nothing(tmp_path: Path) -> None:
    assert reading(tmp_path) is None
    (tmp_path / "stat").write_text("cpu0 what\n")
    assert reading(tmp_path) is None
    assert between(None, None) is None


def readings(busy: float, own: float, stolen: float = 0.0, seconds: float = 10.0) -> Load | None:
    programs = {7: ("cc1plus", 100.0), 8: ("ld", 10.0)}
    later = {7: ("cc1plus", 104.0), 8: ("ld", 10.1), 9: ("cc1plus", 1.0)}
    return between(
        Reading(50.0, 2, 1000.0, 5.0, 300.0, programs),
        Reading(50.0 + seconds, 2, 1000.0 + busy, 5.0 + stolen, 300.0 + own, later),
    )


def test_others_are_what_is_busy_and_not_ours() -> None:
    found = readings(busy=17.0, own=10.0)
    assert found is not None and not found.quiet
    assert (found.seconds, found.cores, found.stolen) == (10.0, 2, 0.0)
    assert found.others == pytest.approx(0.7) and found.lost == pytest.approx(0.7)
    assert found.programs == {"cc1plus": pytest.approx(0.5)}  # both together; ld took next to nothing
    assert found.text() == "busy: others used 0.7 of 2 cores (cc1plus 0.5)"
    assert found.as_dict()["quiet"] is False and found.as_dict()["others"] == 0.7


@pytest.mark.parametrize("busy", [19.0, 20.5, 20.9])  # counted in ticks: it may be less than ours
def test_a_machine_that_does_our_work_alone_is_quiet(busy: float) -> None:
    found = readings(busy, own=20.0)
    assert found is not None and found.quiet and found.text() == "quiet"
    assert found.others >= 0


def test_time_that_the_hypervisor_takes_is_no_quiet() -> None:
    found = readings(busy=20.0, own=20.0, stolen=3.0)
    assert found is not None and found.text() == (
        "busy: others used 0.0 of 2 cores (cc1plus 0.5), the hypervisor took 0.3"
    )


def test_a_short_time_tells_nothing() -> None:
    assert readings(busy=0.2, own=0.2, seconds=0.2) is None


def test_waiting_tells_what_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = [Reading(0.0, 4, 10.0, 0.0, 1.0), Reading(0.5, 4, 11.0, 0.0, 1.0)]
    monkeypatch.setattr(load, "reading", lambda: taken.pop(0))
    monkeypatch.setattr(load.time, "sleep", lambda _: None)
    found = load.idle_load()
    assert found is not None and found.others == 2.0
    monkeypatch.setattr(load, "reading", lambda: None)
    assert load.idle_load() is None
