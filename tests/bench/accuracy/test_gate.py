"""`--require NAME=VALUE`."""

from __future__ import annotations

import pytest

from lira_bench.accuracy import gate
from lira_engine.errors import LiraError

FIGURES: gate.Figures = {"ciou": 0.9, "giou": None, "expressions": 4}


def test_what_is_reached_passes() -> None:
    gate.check(gate.parse(["ciou=0.9", "expressions=4"]), FIGURES)
    gate.check({}, FIGURES)


def test_what_is_not_reached_is_named_with_both_numbers() -> None:
    with pytest.raises(LiraError) as error:
        gate.check(gate.parse(["ciou=0.95", "expressions=3", "giou=0"]), FIGURES)
    assert str(error.value) == (
        "not good enough: ciou is 0.9, required 0.95; giou is not measured, required 0"
    )


def test_a_figure_that_there_is_not() -> None:
    with pytest.raises(LiraError, match="no such figure; there are: ciou, giou, expressions"):
        gate.check({"cIoU": 0.5}, FIGURES)


@pytest.mark.parametrize("text", ["ciou", "ciou=", "=0.5", "ciou=high", "ciou=nan", ""])
def test_what_is_not_name_and_value(text: str) -> None:
    with pytest.raises(LiraError, match="expected NAME=VALUE"):
        gate.parse([text])


def test_what_is_not_a_number_never_passes() -> None:
    with pytest.raises(LiraError, match="ciou is not measured, required -1"):
        gate.check({"ciou": -1.0}, {"ciou": float("nan")})


def test_hallucination_has_to_be_lower() -> None:
    figures = {"chair_i": 0.1, "chair_s": 0.3}
    gate.check(gate.parse(["chair_i=0.1"]), figures)
    with pytest.raises(LiraError) as error:
        gate.check(gate.parse(["chair_i=0.05", "chair_s=0.5"]), figures)
    assert str(error.value) == "not good enough: chair_i is 0.1, required at most 0.05"


def test_no_requirement_hides_another() -> None:
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
