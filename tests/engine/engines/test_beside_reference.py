"""How far a tensor may be from that of a reference with the same weights."""

from __future__ import annotations

import numpy as np
import pytest

from lira_engine.engines.accuracy import rms_error
from lira_engine.engines.beside_reference import beside_reference


def beside(found: np.ndarray, expected: np.ndarray, precision: str = "fp16") -> float:
    return beside_reference(precision, found, expected)


ROWS = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)


def test_errors_beside_a_reference_are_counted_in_accepted_ones() -> None:
    assert beside(ROWS, ROWS) == 0
    assert beside(ROWS * np.float32(1.02), ROWS) == pytest.approx(1, rel=1e-3)
    assert beside(ROWS * np.float32(1.0001), ROWS, "fp32") == pytest.approx(1, rel=1e-2)
    assert beside(ROWS * np.float32(1.04), ROWS, "int4") == beside(ROWS * np.float32(1.04), ROWS, "mixed") > 1
    half = ROWS.astype(np.float16)
    assert beside((ROWS * np.float32(1 + 4e-4)).astype(np.float16), half) < 0.1
    assert beside(half, ROWS) == beside(ROWS[:3], ROWS) == np.inf


def test_one_wrong_value_is_not_lost_among_many() -> None:
    found = ROWS.copy()
    found[3, 4] += 0.3 * np.abs(ROWS).max()
    assert rms_error(found, ROWS) < 0.027 < beside(found, ROWS) * 0.02 < 0.05
    many, few = np.tile(ROWS, (50, 1)), np.tile(ROWS, (50, 1))
    many[3, 4] += 0.3 * np.abs(ROWS).max()
    assert rms_error(many, few) < 0.01 and beside(many, few) > 1


@pytest.mark.parametrize("mask", [-np.inf, np.finfo(np.float32).min / 2, -32752.0])
def test_scores_of_masked_keys_do_not_hide_others(mask: float) -> None:
    expected = ROWS.copy()
    expected[:, 25:] = mask
    assert beside(expected, expected) == 0
    found = expected.copy()
    found[:, :25] *= 1.1
    assert beside(found, expected) > 1 < beside(found, expected, "fp32")
    for other in (0, mask * np.float32(1.5) if np.isfinite(mask) else -1):  # a key that must be masked
        found = expected.copy()
        found[0, 30] = other
        assert beside(found, expected) > 1 < beside(found, expected, "fp32")
    found = expected.copy()
    found[0, 3] = mask  # one that must not
    assert beside(found, expected) > 1


def test_values_that_are_not_finite_must_be_the_same() -> None:
    expected = np.array([1, np.inf, -np.inf, np.nan], np.float32)
    assert beside(expected, expected) == 0
    for i, other in ((0, np.nan), (1, -np.inf), (1, np.nan), (1, 1), (2, 0), (3, 1)):
        found = expected.copy()
        found[i] = other
        assert beside(found, expected) == np.inf, (i, other)
    nothing = np.full(3, np.nan, np.float32)
    assert beside(nothing, nothing) == 0


def test_values_near_zero_are_zero() -> None:
    """Devices flush what has no normal number; a small number is no zero."""
    tiny = np.array([6e-8, -6e-8, 0], np.float16)
    assert beside(np.zeros(3, np.float16), tiny) < 1
    assert beside(np.zeros(3, np.float32), np.full(3, 1e-40, np.float32), "fp32") < 1
    small = np.full(3, 1e-3, np.float16)
    assert beside(np.zeros(3, np.float16), small) > 1
    assert beside(np.full(3, 1e-3, np.float16), np.zeros(3, np.float16)) > 1


def test_integers_and_booleans_beside_a_reference() -> None:
    expected = np.arange(100)
    found = expected.copy()
    found[7] = 0
    assert beside(expected, expected, "fp32") == 0 and beside(found, expected, "fp32") == np.inf
    assert beside(found, expected) == 0.5 and beside(found > 7, expected > 6) <= 1
    assert beside(1 - expected, expected) > 1
    assert beside(np.zeros(0, np.int64), np.zeros(0, np.int64)) == 0
