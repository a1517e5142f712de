"""How far the logits of verify's answer may be from those that they are compared with."""

from __future__ import annotations

import numpy as np
import pytest

from lira_engine import LiraError
from lira_runtime import verify_answer
from lira_runtime.verify_answer import _agreeing


def test_cutting_is_exact_in_fp32_alone() -> None:
    logits = np.random.default_rng(0).standard_normal((5, 50)).astype(np.float32)
    assert verify_answer._check_cutting(logits * np.float32(1.001), logits, 0.02) == pytest.approx(
        1e-3, rel=0.01
    )
    with pytest.raises(LiraError, match="token by token they differ by"):
        verify_answer._check_cutting(logits * np.float32(1.001), logits, 1e-4)


def test_near_ties_may_swap() -> None:
    expected = np.array([[9.0, 10.0, -5.0], [1.0, 2.0, 3.0]], np.float32)
    assert _agreeing(expected, expected, "fp32") == 2
    turned = expected[:, [1, 0, 2]]  # the first argmax is another token, 1.0 below 10
    with pytest.raises(
        LiraError,
        match=r"token 1 of the answer is wrong: the engine's argmax is 0, .* is 1 and ahead of it by 1",
    ):
        _agreeing(turned, expected, "fp16")
    assert _agreeing(turned, expected, "int8") == 1


def test_int4_logits_unrelated_to_the_portable_ones_are_wrong() -> None:
    """With four bits any argmax may be a tie: the error of all logits decides."""
    expected = np.random.default_rng(0).standard_normal((5, 50)).astype(np.float32)
    with pytest.raises(LiraError, match=r"logits of the answer are wrong: .* at most 6e-01 is accepted"):
        _agreeing(expected[:, ::-1], expected, "int4")
    assert _agreeing(expected * np.float32(1.3), expected, "int4") == 5
