"""Weights rounded by GPTQ lose less, in integers and scales that every target stores."""

from __future__ import annotations

import numpy as np
import pytest

from lira_calib.methods import gptq as module
from lira_calib.methods.gptq import gptq_codes
from lira_calib.methods.gram import Grams, output_error
from lira_calib.methods.int4 import nearest
from lira_engine.errors import LiraError
from lira_engine.lowering.int4_blocks import Blocks, dequantize, quantize_positive


def rows(inputs: int, number: int = 400) -> np.ndarray:
    """Rows [R, K] whose channels go together, as activations do."""
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((number, inputs // 4)) @ rng.standard_normal((inputs // 4, inputs))
    return (mixed + 0.3 * rng.standard_normal((number, inputs))).astype(np.float32)


def weight(inputs: int, outputs: int = 24) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((inputs, outputs), np.float32) * np.float32(0.05)


def error(w: np.ndarray, stored: Blocks, x: np.ndarray) -> float:
    return float(np.square(x @ (dequantize(stored, len(w)) - w)).sum())


def by_definition(weight: np.ndarray, gram: np.ndarray, block: int) -> np.ndarray:
    """Round input after input: the others move to the least error that the rounded ones leave them, by the
    inverse of what is not rounded yet. Returns the weight [K, N]."""
    left, inverse = weight.astype(np.float64), gram.astype(np.float64)
    diagonal = np.einsum("kk->k", inverse)
    diagonal += 0.01 * diagonal.mean()
    inverse = np.linalg.inv(inverse)
    for i in range(len(left)):
        if i % block == 0:
            scale = quantize_positive(left[i : i + block].astype(np.float32), block).scales[:, 0]
        rounded = np.rint(left[i] / scale).clip(-8, 7) * scale
        step = inverse[i] / inverse[i, i]
        left[i + 1 :] -= step[i + 1 :, None] * (left[i] - rounded)
        left[i] = rounded
        inverse = inverse - np.outer(inverse[:, i], step)
    return left


@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("inputs", [256, 208, 20])
def test_codes_are_those_of_the_definition(inputs: int, block: int) -> None:
    """208 inputs end with a short block; 20 are less than one. A sum in fp32 decides a near tie otherwise,
    and then its output goes its own way."""
    x, w = rows(inputs), weight(inputs)
    packed, scales = gptq_codes(w, x.T @ x, block)
    assert packed.shape == (24, -(-inputs // block), block // 2) and packed.dtype == np.uint8
    assert scales.shape == packed.shape[:2] and scales.dtype == np.float32 and (scales > 0).all()
    np.testing.assert_array_equal(scales, scales.astype(np.float16).astype(np.float32))
    found, expected = dequantize(Blocks(packed, scales), inputs), by_definition(w, x.T @ x, block)
    assert (found == expected).all(axis=0).mean() > 0.7
    np.testing.assert_allclose(
        np.square(x @ (found - w)).sum(), np.square(x @ (expected - w)).sum(), rtol=1e-3
    )


@pytest.mark.parametrize("block", [32, 64, 128])
def test_rows_are_moved_less_than_by_rounding_to_nearest(block: int) -> None:
    x, w = rows(128, 800), weight(128)
    seen, unseen = x[:400], x[400:]
    stored = Blocks(*gptq_codes(w, seen.T @ seen, block))
    assert error(w, stored, seen) < 0.2 * error(w, nearest(w, block), seen)
    assert error(w, stored, unseen) < 0.3 * error(w, nearest(w, block), unseen)


def test_no_output_is_worse_off_than_rounded_to_nearest() -> None:
    """Inputs that have nothing to do with each other can make up for nothing: some outputs lose by it."""
    x, w = np.random.default_rng(0).standard_normal((70, 64), np.float32), weight(64, 100)
    gram = x.T @ x
    found, plain = dequantize(Blocks(*gptq_codes(w, gram, 32)), 64), dequantize(nearest(w, 32), 64)
    assert (output_error(found - w, gram) <= output_error(plain - w, gram)).all()
    assert 0 < (found == plain).all(axis=0).sum() < 100


def test_inputs_that_no_row_reached_are_rounded_to_nearest() -> None:
    x, w = rows(96), weight(96)
    x[:, 5], x[:, 64:] = 0, 0
    packed, scales = gptq_codes(w, x.T @ x, 32)
    found = dequantize(Blocks(packed, scales), 96)
    np.testing.assert_array_equal(found[64:], dequantize(nearest(w, 32), 96)[64:])
    assert (
        np.abs(found[5] - w[5]) <= np.maximum(0.5, np.abs(w[5] / scales[:, 0]) - 7) * scales[:, 0] * 1.001
    ).all()


def test_a_weight_is_rounded_in_parts_and_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = rows(64), weight(64)
    gram = x.T @ x
    before = w.copy(), gram.copy()
    whole = gptq_codes(w, gram, 32)
    monkeypatch.setattr(module, "VALUES_AT_ONCE", 64 * 5)
    for one, other in zip(gptq_codes(w.astype(np.float64), gram, 32), whole, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(w, before[0])
    np.testing.assert_array_equal(gram, before[1])


def test_few_rows_suffice() -> None:
    """A matrix of one row has no inverse without damping."""
    x, w = rows(64)[:1], weight(64)
    stored = Blocks(*gptq_codes(w, x.T @ x, 32))
    assert error(w, stored, x) < 0.1 * error(w, nearest(w, 32), x)


def test_a_matrix_without_inverse_is_damped_more() -> None:
    """Rounding may make a sum of squares slightly negative in some direction."""
    gram, w = np.eye(64), weight(64)
    gram[0, 1] = gram[1, 0] = 1.05
    factor = module._factor(gram).astype(np.float64)  # the second share takes the place of the first
    np.testing.assert_allclose(np.linalg.inv(factor.T @ factor), gram + 0.1 * np.eye(64), atol=1e-3)
    stored = Blocks(*gptq_codes(w, gram, 32))
    assert (
        output_error(dequantize(stored, 64) - w, gram)
        <= output_error(dequantize(nearest(w, 32), 64) - w, gram)
    ).all()
    gram[0, 1] = gram[1, 0] = 3
    with pytest.raises(LiraError, match="have no inverse: calibrate on more pictures"):
        gptq_codes(w, gram, 32)


def test_a_weight_that_no_row_reached_is_rounded_to_nearest() -> None:
    w = weight(64)
    packed, scales = gptq_codes(w, np.zeros((64, 64)), 32)
    np.testing.assert_array_equal(packed, nearest(w, 32).packed)
    np.testing.assert_array_equal(scales, nearest(w, 32).scales)


def test_zeros_stay_zeros() -> None:
    x = rows(64)
    packed, scales = gptq_codes(np.zeros((64, 3), np.float32), x.T @ x, 32)
    assert (packed == 0x88).all() and (scales > 0).all()


def test_what_is_not_finite_is_refused() -> None:
    gram = np.eye(64)
    gram[3, 3] = np.nan
    with pytest.raises(LiraError, match=r"not finite: check the bundle with `lira-edge verify`"):
        gptq_codes(weight(64), gram, 32)


def test_gram_matrices_are_sums_of_all_rows() -> None:
    grams, x = Grams({"normed": ["q", "k"], "gated": ["down"]}), rows(16, 5000)
    for some in (x[:4500], x[4500:]):
        for name in ("q", "k"):
            grams.add(name, some)
    expected = x.astype(np.float64).T @ x.astype(np.float64)
    np.testing.assert_allclose(grams["k"], expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())
    assert grams["q"] is grams["k"] and grams["q"].dtype == np.float64
    with pytest.raises(LiraError, match="no rows reached the matmul of down"):
        grams["down"]
    with pytest.raises(LiraError, match="the matmul of q reads values that are not finite"):
        grams.add("q", np.full((1, 16), np.inf, np.float32))
