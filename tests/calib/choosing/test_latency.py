"""Stages are timed in turns."""

from __future__ import annotations

from lira_calib.choosing.latency import in_turns


def test_every_round_runs_everything_and_the_least_counts() -> None:
    order: list[str] = []

    def run(name: str, times: list[float]) -> float:
        order.append(name)
        return times.pop(0)

    before, after = [9.0, 3.0, 2.0, 4.0], [0.1, 1.0, 5.0, 2.0]  # the first ones warm up
    found = in_turns([lambda: run("before", before), lambda: run("after", after)], rounds=3)
    assert order == ["before", "after"] * 4
    assert found == [2.0, 1.0]
