"""How far an engine's outputs may be from the recorded ones."""

from __future__ import annotations

import numpy as np
import pytest

from lira_engine import LiraError
from lira_engine.bundle.check_vectors import CheckVectors
from lira_engine.engines.accuracy import (
    Checked,
    NotFinite,
    check_outputs,
    check_stage_outputs,
    relative_error,
    worst,
)
from lira_engine.engines.near_ties import Flip, accepted_error, flip_rows


def test_fp16_outputs_have_their_own_tolerance() -> None:
    expected = {"x": np.linspace(-1, 1, 100, dtype=np.float32), "valid": np.arange(100) % 2 == 0}
    found = {"x": expected["x"] * np.float32(1.01), "valid": expected["valid"].copy()}
    found["valid"][0] ^= True
    errors = check_outputs("it", "fp16", found, expected, {})
    assert errors == {"x": pytest.approx(0.01, rel=1e-3), "valid": 0.01}
    with pytest.raises(LiraError, match=r"output x differs from the recorded one by 3\.0e-02"):
        check_outputs("it", "fp16", {**found, "x": expected["x"] * np.float32(1.03)}, expected, {})
    with pytest.raises(LiraError, match=r"output x differs .* by inf"):
        check_outputs("it", "fp16", {**found, "x": expected["x"] * np.float32(np.nan)}, expected, {})
    found["valid"][:3] = ~expected["valid"][:3]
    with pytest.raises(LiraError, match=r"output valid differs .* of its elements"):
        check_outputs("it", "fp16", found, expected, {})


@pytest.mark.parametrize("precision, right, wrong", [("int8", 1.14, 1.16), ("int4", 1.55, 1.65)])
def test_quantized_outputs_have_their_own_tolerance(precision: str, right: float, wrong: float) -> None:
    """Weights that are packed or scaled wrongly are off by more (engines.precision)."""
    expected = {"x": np.linspace(-1, 1, 100, dtype=np.float32)}
    errors = check_outputs("it", precision, {"x": expected["x"] * np.float32(right)}, expected, {})
    assert errors == {"x": pytest.approx(right - 1, rel=1e-3)}
    with pytest.raises(LiraError, match="output x differs"):
        check_outputs("it", precision, {"x": expected["x"] * np.float32(wrong)}, expected, {})


def test_an_engine_without_any_recorded_output_is_wrong() -> None:
    expected = {"x": np.ones(3, np.float32), "y": np.ones(3, np.float32)}
    assert check_outputs("it", "fp32", {"y": expected["y"]}, expected, {}) == {"y": 0.0}
    with pytest.raises(LiraError, match="it gave none of the recorded outputs: x, y"):
        check_outputs("it", "fp32", {"z": expected["x"]}, expected, {})


def test_engines_of_a_recipe_need_only_be_finite() -> None:
    """Masks decide about them: neither how far an output is off counts, nor which queries are valid."""
    expected = {"x": np.array([1.0, 2.0], np.float32), "valid": np.array([True, True, False, False])}
    found = {"x": np.array([5.0, -7.0], np.float32), "valid": ~expected["valid"]}
    errors = check_outputs("it", "mixed", found, expected, {})
    assert errors["x"] == pytest.approx((97 / 5) ** 0.5) and errors["valid"] == 1.0
    for value in (np.nan, np.inf):
        with pytest.raises(NotFinite, match="it is wrong: output x is not finite"):
            check_outputs("it", "mixed", found | {"x": np.array([1.0, value], np.float32)}, expected, {})
    with pytest.raises(NotFinite, match="or not of the recorded shape"):
        check_outputs("it", "mixed", found | {"valid": np.array([True])}, expected, {})
    with pytest.raises(LiraError, match="at most 2e-02 is accepted"):
        check_outputs("it", "fp16", found, expected, {})


def vectors_with_margins(*margins: float, noise: float = 0.0) -> CheckVectors:
    valid = np.array([[True, False, True, False]])
    return CheckVectors({}, {"valid": valid}, {"valid": noise}, {"valid": np.array([margins], np.float32)})


def test_a_value_that_is_not_finite_is_infinitely_far() -> None:
    expected = np.array([1, 2, np.inf], np.float32)
    assert relative_error(expected, expected) == 0
    for wrong in (np.nan, np.inf, -np.inf):
        assert relative_error(np.array([1, wrong, np.inf], np.float32), expected) == np.inf
    assert relative_error(np.array([1, 2, 3], np.float32), expected) == np.inf


def test_the_worst_of_several_runs_counts() -> None:
    runs = ({"x": 0.1, "y": 0.4}, {"x": 0.3, "y": 0.2}, {"x": 0.2})
    assert worst(*map(Checked, runs)).errors == {"x": 0.3, "y": 0.4}


def test_noise_of_the_reference_widens_the_tolerance_tenfold() -> None:
    assert [accepted_error(noise) for noise in (0.0, 1e-6, 1e-5)] == [1e-4, 1e-4, 1e-4]
    assert accepted_error(3e-5) == pytest.approx(3e-4)


def test_near_ties_may_come_out_otherwise_in_fp32() -> None:
    vectors = vectors_with_margins(1e-6, 1.9e-4, 2.1e-4, 0.5)
    found = {"valid": np.array([[False, True, True, False]])}
    checked = check_stage_outputs("it", "fp32", found, vectors)
    assert checked.errors == {"valid": 0.5} and [flip.element for flip in checked.flips] == [0, 1]
    assert [flip.found for flip in checked.flips] == [False, True]
    (title, first), *others = flip_rows({"pixel_encoder": checked.flips})
    assert (title, others[1]) == ("near ties", ("", "valid 1 is now true (margin 1.9e-04)"))
    assert first == "pixel_encoder: 2 came out otherwise; margins up to 1.9e-04, at most 2e-04 is rounding"
    assert check_stage_outputs("it", "fp32", vectors.outputs, vectors).flips == ()
    other = {"valid": np.array([[False, True, False, True]])}
    with pytest.raises(
        LiraError, match=r"valid 3 is now true \(margin 5\.0e-01\).*; 2 flips are no near ties"
    ):
        check_stage_outputs("it", "fp32", other, vectors)
    noisy = vectors_with_margins(1e-6, 1.9e-4, 2.1e-4, 0.5, noise=2e-5)  # explains 4e-4
    assert len(check_stage_outputs("it", "fp32", {"valid": ~found["valid"] ^ True}, noisy).flips) == 2
    found["valid"][0, 2] = False
    assert len(check_stage_outputs("it", "fp32", found, noisy).flips) == 3
    with pytest.raises(LiraError, match=r"valid 2 is now false"):
        check_stage_outputs("it", "fp32", found, vectors)


def test_a_margin_of_just_the_limit_is_a_near_tie() -> None:
    margins = {np.nextafter(2e-4, 0): True, 2e-4: True, np.nextafter(2e-4, 1): False, np.nan: False}
    assert [Flip("valid", 0, True, margin, 2e-4).near_tie for margin in margins] == list(margins.values())


@pytest.mark.parametrize("count, last", [(5, "4 is now true"), (6, "and 1 more"), (9, "and 4 more")])
def test_five_flips_are_told_and_how_many_there_are_more(count: int, last: str) -> None:
    rows = flip_rows({"pixel_encoder": [Flip("valid", i, True, i * 1e-6, 2e-4) for i in range(count)]})
    assert len(rows) == 1 + 5 + (count > 5) and last in rows[-1][1]
    assert f"{count} came out otherwise; margins up to {(count - 1) * 1e-6:.1e}" in rows[0][1]


def test_other_shapes_and_dtypes_are_no_near_ties() -> None:
    vectors = vectors_with_margins(1e-6, 1e-6, 1e-6, 1e-6)
    for wrong in (np.ones((1, 3), bool), np.ones((1, 4), np.float32)):
        with pytest.raises(LiraError, match=r"output valid differs .* by inf of its elements"):
            check_stage_outputs("it", "fp32", {"valid": wrong}, vectors)


def test_fp16_counts_flips_and_asks_no_margins() -> None:
    vectors = vectors_with_margins(1e-6, 1e-6, 1e-6, 1e-6)
    with pytest.raises(LiraError, match=r"2\.5e-01 of its elements, at most 2e-02"):
        check_stage_outputs("it", "fp16", {"valid": np.array([[False, False, True, False]])}, vectors)
