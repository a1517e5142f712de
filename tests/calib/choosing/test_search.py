"""The search for the fastest choice within a budget, on units whose effects add up."""

from __future__ import annotations

from itertools import product

import pytest

from lira_calib.choosing.search import FLOAT, Candidate, Choice, Option, search, seconds_of, worthwhile


def candidate(unit: str, floating: float, *options: tuple[str, float, float]) -> Candidate:
    return Candidate(unit, (Option(FLOAT, floating), *(Option(*one) for one in options)))


def harm_of(candidates: list[Candidate], choice: Choice) -> float:
    return sum(one.option(choice[one.unit]).harm for one in candidates)


UNITS = [
    candidate("a", 10.0, ("int8", 5.0, 0.1)),
    candidate("b", 8.0, ("int8", 5.0, 0.6), ("int4", 4.0, 0.9)),
    candidate("c", 4.0, ("int8", 3.0, 0.02)),
    candidate("d", 6.0, ("int8", 2.0, 0.7)),
    candidate("e", 1.0, ("int8", 1.5, 0.0)),
]

FLOATS = {one.unit: FLOAT for one in UNITS}


def best_of_all(candidates: list[Candidate], budget: float) -> float:
    """Seconds of the fastest choice, by trying every one."""
    names = [[one.name for one in each.options] for each in candidates]
    choices = ({c.unit: n for c, n in zip(candidates, of, strict=True)} for of in product(*names))
    return min(seconds_of(candidates, choice) for choice in choices if harm_of(candidates, choice) <= budget)


@pytest.mark.parametrize("budget", [0.01, 0.05, 0.5, 0.82, 0.9, 1.5, 5.0])
def test_the_fastest_choice_within_the_budget_is_found(budget: float) -> None:
    found = search(UNITS, lambda choice: harm_of(UNITS, choice) / budget)
    assert harm_of(UNITS, found.choice) <= budget
    assert found.seconds == pytest.approx(best_of_all(UNITS, budget))
    assert found.seconds == pytest.approx(seconds_of(UNITS, found.choice))


@pytest.mark.parametrize("budget", [0.021, 0.1, 0.12, 0.3, 0.71, 1.4])
def test_a_budget_that_units_fill_badly_is_kept_and_nearly_used(budget: float) -> None:
    found = search(UNITS, lambda choice: harm_of(UNITS, choice) / budget)
    assert harm_of(UNITS, found.choice) <= budget
    assert found.seconds <= 1.2 * best_of_all(UNITS, budget)
    assert found.seconds < seconds_of(UNITS, FLOATS)


def test_a_unit_that_is_no_faster_stays_a_float_and_is_never_tried() -> None:
    tried = []
    found = search(UNITS, lambda choice: tried.append(choice) or 0.0)
    assert found.choice == {"a": "int8", "b": "int4", "c": "int8", "d": "int8", "e": FLOAT}
    assert all(choice["e"] == FLOAT for choice in tried)
    assert len(tried) == 1  # the fastest choice is within the budget, so nothing else is measured


def test_nothing_within_the_budget_leaves_all_floats() -> None:
    found = search(UNITS, lambda choice: 2.0)
    assert set(found.choice.values()) == {FLOAT} and found.share == 0.0


def test_what_is_chosen_was_measured_within_the_budget_even_if_effects_do_not_add_up() -> None:
    """A pair that is harmless one by one and breaks together: the search measures whole choices."""

    def share_of(choice: Choice) -> float:
        return 3.0 if choice["a"] == choice["c"] == "int8" else 0.2

    measured = {}
    found = search(UNITS, lambda choice: measured.setdefault(tuple(sorted(choice.items())), share_of(choice)))
    assert measured[tuple(sorted(found.choice.items()))] <= 1
    assert found.share == 0.2
    assert found.choice["d"] == "int8"  # taken back after the bisection gave up more than was needed


def test_few_evaluations_for_many_units_and_the_same_result_twice() -> None:
    many = [candidate(f"u{i:03d}", 2.0 + i % 7, ("int8", 1.0, 0.01 * (1 + i * 7 % 13))) for i in range(200)]
    budget = 5.0
    counted = []

    def share_of(choice: Choice) -> float:
        counted.append(choice)
        return harm_of(many, choice) / budget

    first = search(many, share_of, most=20)
    assert len(counted) <= 20 and len(first.evaluations) == len(counted)
    assert harm_of(many, first.choice) <= budget
    second = search(many, share_of, most=20)
    assert second == first


def test_options_that_are_slower_and_worse_fall_out() -> None:
    given = candidate(
        "u", 10.0, ("fast", 2.0, 0.5), ("worse", 3.0, 0.6), ("between", 5.0, 0.45), ("good", 6.0, 0.1)
    )
    assert [one.name for one in worthwhile(given).options] == ["fast", "good", FLOAT]


def test_an_option_that_breaks_the_model_is_never_chosen() -> None:
    broken = [candidate("u", 10.0, ("int4", 1.0, float("inf")), ("int8", 5.0, 0.1))]
    assert search(broken, lambda choice: 0.0).choice == {"u": "int8"}
