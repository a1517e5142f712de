"""Decisions about units, as asked and by a search, on measured times and effects that are given."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from lira_calib.choosing.assemble import Storage
from lira_calib.choosing.decide import (
    BEYOND,
    NO_FASTER,
    NOT_ASKED,
    NOT_FINITE,
    Measures,
    as_asked,
    by_search,
    faster_options,
)
from lira_calib.choosing.search import FLOAT, Choice
from lira_calib.choosing.sensitivity import Memo


@dataclass(frozen=True)
class Part:
    stage: str
    name: str
    weights: tuple[str, ...] = ("w",)


UNITS = [Part("llm", "a"), Part("llm", "b"), Part("sefe", "c"), Part("sefe", "d"), Part("sefe", "e")]
SECONDS = {
    "llm/a": {FLOAT: 4.0, "w8a8": 2.0, "int4/32": 1.0},
    "llm/b": {FLOAT: 4.0, "w8a8": 2.0, "int4/32": 1.0},
    "sefe/c": {FLOAT: 1.0, "w8a8": 0.97},
    "sefe/d": {FLOAT: 9.0, "w8a8": 1.0},
    "sefe/e": {FLOAT: 5.0},
}
LOST = {("llm/a", "int4/32"): 0.3, ("llm/a", "w8a8"): 0.05, ("llm/b", "int4/32"): 0.02}
LOST |= {("llm/b", "w8a8"): 0.01, ("sefe/d", "w8a8"): 0.9}


@dataclass
class Score:
    lost: float
    nonfinite: str | None = None
    hidden_error: float = 0.0

    def metric(self, name: str) -> float:
        return 1 - self.lost if name == "iou" else 1.0


class Model:
    """Effects that add up; counts what is measured."""

    def __init__(self, broken: str | None = None) -> None:
        self.effects: list[Choice] = []
        self.shares: list[Choice] = []
        self.broken = broken

    def lost(self, choice: Choice) -> float:
        return sum(LOST.get(pair, 0.0) for pair in choice.items())

    def effect(self, choice: Choice) -> Score:
        self.effects.append(choice)
        return Score(self.lost(choice), "logits" if self.broken in choice else None)

    def share(self, choice: Choice) -> float:
        self.shares.append(choice)
        return self.lost(choice) / 0.1

    @property
    def measures(self) -> Measures:
        return Measures(self.effect, self.share)


def test_as_asked_says_what_was_not_asked() -> None:
    first, second = Storage("w8a8", dynamic=True), Storage("int4", 32)
    by_unit = {"a": first, "b": second, "c": None}
    decision = as_asked(UNITS[:3], lambda unit: by_unit[unit.name])
    assert decision.choice == {"llm/a": "w8a8 dynamic", "llm/b": "int4/32", "sefe/c": FLOAT}
    assert decision.floats == {"sefe/c": NOT_ASKED}


def test_a_search_keeps_the_budget_and_says_why_units_stay_floats(tmp_path: Path) -> None:
    model = Model()
    decision = by_search(UNITS, SECONDS, model.measures, Memo(tmp_path / "journal"))
    assert decision.choice["llm/a"] == "w8a8" and decision.choice["llm/b"] == "int4/32"
    assert model.lost(decision.choice) <= 0.1
    assert decision.floats == {"sefe/c": NO_FASTER, "sefe/d": BEYOND, "sefe/e": NOT_ASKED}
    assert {"sefe/c": "w8a8"} not in model.effects  # no faster: not worth a measurement
    assert len(decision.effects) == 5
    record = decision.record
    json.dumps(record, allow_nan=False)
    assert record["matmul_seconds"] == {"float": 23.0, "chosen": 2.0 + 1.0 + 1.0 + 9.0 + 5.0}
    assert len(record["evaluations"]) == len(model.shares) == record["cost"]["measured"] - 5
    assert record["budget_taken"] == pytest.approx(0.7)


def test_a_second_run_measures_nothing_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = by_search(UNITS, SECONDS, Model().measures, Memo(path))
    model = Model()
    again = by_search(UNITS, SECONDS, model.measures, Memo(path))
    assert not model.effects and not model.shares
    assert again.choice == first.choice and again.record["cost"]["measured"] == 0


def test_whole_stages_need_few_measurements(tmp_path: Path) -> None:
    model = Model()
    decision = by_search(UNITS, SECONDS, model.measures, Memo(tmp_path / "journal"), whole_stages=True)
    assert len(model.effects) == 3  # llm in two ways, sefe in one
    assert decision.choice["sefe/c"] == FLOAT  # no faster, so that it never takes part
    assert decision.choice["llm/a"] == decision.choice["llm/b"] == "w8a8"
    assert model.lost(decision.choice) <= 0.1


def test_units_for_which_an_option_is_no_faster_stay_floats_in_a_quantized_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOST, ("sefe/d", "w8a8"), 0.0)
    model = Model()
    decision = by_search(UNITS, SECONDS, model.measures, Memo(tmp_path / "journal"), whole_stages=True)
    assert decision.choice["sefe/d"] == "w8a8"
    for choice in (decision.choice, *model.effects, *model.shares):
        assert {choice.get(unit, FLOAT) for unit in ("sefe/c", "sefe/e")} == {FLOAT}
    assert (decision.floats["sefe/c"], decision.floats["sefe/e"]) == (NO_FASTER, NOT_ASKED)


def test_a_unit_that_breaks_the_model_stays_a_float(tmp_path: Path) -> None:
    decision = by_search(UNITS, SECONDS, Model("llm/b").measures, Memo(tmp_path / "journal"))
    assert decision.choice["llm/b"] == FLOAT and decision.floats["llm/b"] == NOT_FINITE
    json.dumps(decision.record, allow_nan=False)


def test_an_option_must_be_clearly_faster_than_those_that_err_less() -> None:
    assert faster_options({FLOAT: 4.0, "w8a8 dynamic": 2.0, "w8a8": 1.95, "int4/32": 1.5}) == [
        "w8a8 dynamic",
        "int4/32",
    ]
    assert faster_options({FLOAT: 4.0, "w8a8": 3.9}) == []
