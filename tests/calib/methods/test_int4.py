"""The error of weights in four bits, of their values and of what they make."""

from __future__ import annotations

import numpy as np
import pytest

from lira_calib.methods.int4 import (
    SAMPLED_COLUMNS,
    Rounding,
    nearest,
    rounding,
    sampled,
)
from lira_engine.lowering.int4_blocks import dequantize

X = np.random.default_rng(0).standard_normal((300, 128), np.float32)
W = np.random.default_rng(1).standard_normal((128, 40), np.float32)


def test_errors_are_those_of_the_matmul() -> None:
    stored = nearest(W, 32)
    found = rounding(W, stored, X.T @ X)
    change = dequantize(stored, 128) - W
    assert found.weight == pytest.approx(np.linalg.norm(change) / np.linalg.norm(W), rel=1e-5)
    assert found.output == pytest.approx(np.linalg.norm(X @ change) / np.linalg.norm(X @ W), rel=1e-3)


def test_some_outputs_stand_for_all() -> None:
    wide = np.random.default_rng(2).standard_normal((128, 4 * SAMPLED_COLUMNS), np.float32)
    found = rounding(wide, nearest(wide, 32), X.T @ X)
    change = dequantize(nearest(wide, 32), 128) - wide
    assert found.output == pytest.approx(np.linalg.norm(X @ change) / np.linalg.norm(X @ wide), rel=0.02)


def test_a_channel_that_is_large_counts_more() -> None:
    x = X.copy()
    x[:, 7] *= 30
    w = W.copy()
    w[7] *= 0.05  # and a small weight, which rounds badly
    plain, heavy = (rounding(w, nearest(w, 128), rows.T @ rows) for rows in (X, x))
    assert heavy.weight == plain.weight and heavy.output > 1.5 * plain.output


def test_a_weight_of_zeros_has_no_error() -> None:
    zeros = np.zeros_like(W)
    assert rounding(zeros, nearest(zeros, 32), X.T @ X) == Rounding(0, 0)


@pytest.mark.parametrize("outputs", [1, 512, 513, 1023, 1025, 92553])
def test_of_large_weights_a_bounded_number_of_outputs_is_measured(outputs: int) -> None:
    measured = len(range(outputs)[sampled(outputs)])
    assert min(outputs, SAMPLED_COLUMNS // 2) <= measured <= SAMPLED_COLUMNS
