"""How far an engine's outputs may be from the recorded ones."""

from __future__ import annotations

import numpy as np
import pytest

from lira_engine import LiraError
from lira_engine.engines.accuracy import NotFinite, check_outputs


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
