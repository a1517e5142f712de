"""`--require NAME=VALUE`."""

from __future__ import annotations

import pytest

from lira_bench.accuracy import gate
from lira_engine.errors import LiraError

FIGURES: gate.Figures = {"ciou": 0.9, "giou": None, "expressions": 4}


def test_figures_that_meet_their_bounds_pass() -> None:
    gate.check(gate.parse(["ciou=0.9", "expressions=4"]), FIGURES)
    gate.check({}, FIGURES)


def test_missed_bounds_are_named_with_both_numbers() -> None:
    with pytest.raises(LiraError) as error:
        gate.check(gate.parse(["ciou=0.95", "expressions=3", "giou=0"]), FIGURES)
    assert str(error.value) == (
        "not good enough: ciou is 0.9, required 0.95; giou is not measured, required 0"
    )


def test_an_unknown_figure_lists_the_choices() -> None:
    with pytest.raises(LiraError, match="no such figure; there are: ciou, giou, expressions"):
        gate.check({"cIoU": 0.5}, FIGURES)


@pytest.mark.parametrize("text", ["ciou", "ciou=", "=0.5", "ciou=high", "ciou=nan", ""])
def test_other_texts_than_name_and_value_are_refused(text: str) -> None:
    with pytest.raises(LiraError, match="expected NAME=VALUE"):
        gate.parse([text])


def test_a_nan_never_passes() -> None:
    with pytest.raises(LiraError, match="ciou is not measured, required -1"):
        gate.check({"ciou": -1.0}, {"ciou": float("nan")})


def test_hallucination_must_be_at_most_its_bound() -> None:
    figures = {"chair_i": 0.1, "chair_s": 0.3}
    gate.check(gate.parse(["chair_i=0.1"]), figures)
    with pytest.raises(LiraError) as error:
        gate.check(gate.parse(["chair_i=0.05", "chair_s=0.5"]), figures)
    assert str(error.value) == "not good enough: chair_i is 0.1, required at most 0.05"


def test_a_repeated_bound_is_refused() -> None:
    with pytest.raises(LiraError, match="ciou is required twice"):
        gate.parse(["ciou=0.9", "ciou=0.1"])
    assert gate.parse(["a=b.top1=0.5"]) == {"a=b.top1": 0.5}  # AttrEval's kinds are the data's words


def test_each_bound_is_judged_by_itself() -> None:
    figures = {"ciou": 0.9, "giou": None, "chair_i": 0.1, "f1": float("nan")}
    required = {"ciou": 0.9, "giou": 0.0, "chair_i": 0.05, "f1": 0.0, "other": 0.0}
    found = gate.judged(required, figures)
    assert [(one["name"], one["found"], one["passed"]) for one in found] == [
        ("ciou", 0.9, True),
        ("giou", None, False),
        ("chair_i", 0.1, False),
        ("f1", None, False),
        ("other", None, False),
    ]
    assert [one["required"] for one in found] == list(required.values())
