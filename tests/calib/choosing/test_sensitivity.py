"""Effects of single units, and the journal from which a killed calibration goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from lira_calib.choosing.sensitivity import Effect, Memo, measure_effects


@dataclass
class FakeScore:
    hidden_error: float
    nonfinite: str | None
    rates: dict[str, float]

    def metric(self, name: str) -> float:
        return self.rates[name]


ASKED = [("llm/layers.0.mlp", "int4/32"), ("llm/layers.0.mlp", "w8a8"), ("sefe/out", "w8a8")]


def score(unit: str, option: str) -> FakeScore:
    lost = {"int4/32": 0.02, "w8a8": 0.001}[option]
    return FakeScore(lost * 3, None, {"iou": 1 - lost, "tokens": 1 - lost / 2})


def test_effects_hold_what_was_measured_in_the_given_order(tmp_path: Path) -> None:
    effects = measure_effects(ASKED, score, Memo(tmp_path / "journal"))
    assert [(one.unit, one.option) for one in effects] == ASKED
    assert effects[0].mask_iou == pytest.approx(0.98) and effects[0].tokens == pytest.approx(0.99)
    assert effects[0].harm == pytest.approx(0.02 + 0.01 + 0.01 * 0.06)


def test_a_stopped_measurement_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    whole = measure_effects(ASKED, score, Memo(path))

    def stopped(unit: str, option: str) -> FakeScore:
        if unit == "sefe/out":
            raise KeyboardInterrupt
        return score(unit, option)

    path.unlink()
    with pytest.raises(KeyboardInterrupt):
        measure_effects(ASKED, stopped, Memo(path))
    with path.open("a") as file:
        file.write('{"of": "effect sefe/out w8a8", "found": {"unit": "se')  # killed while it wrote
    asked_again = []

    def again(unit: str, option: str) -> FakeScore:
        asked_again.append((unit, option))
        return score(unit, option)

    assert measure_effects(ASKED, again, Memo(path)) == whole
    assert asked_again == [("sefe/out", "w8a8")]
    assert measure_effects(ASKED, stopped, Memo(path)) == whole  # all of them are known now


def test_an_output_that_is_not_finite_is_infinite_harm(tmp_path: Path) -> None:
    broken = FakeScore(float("nan"), "hidden_states", {"iou": 0.0, "tokens": 0.0})
    (effect,) = measure_effects([("llm/head", "int4/32")], lambda *_: broken, Memo(tmp_path / "j"))
    assert effect.nonfinite == "hidden_states" and effect.harm == float("inf")


def test_units_that_change_no_mask_and_no_token_are_ordered_by_the_hidden_error() -> None:
    little, more = (Effect("u", "w8a8", 1.0, 1.0, error) for error in (0.01, 0.02))
    assert 0 < little.harm < more.harm < Effect("u", "w8a8", 0.999, 1.0, 0.0).harm
