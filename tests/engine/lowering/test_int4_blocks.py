"""Blocks of 4-bit integers: rounding errors and memory layout."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lira_engine.lowering.int4_blocks import (
    Blocks,
    dequantize,
    integers_of,
    quantize,
    quantize_positive,
    quantize_symmetric,
    residual,
)


def matrix(inputs: int, outputs: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(inputs, outputs)).astype(np.float32)


@pytest.mark.parametrize("block", [16, 32, 128])
@pytest.mark.parametrize("shape", [(128, 5), (70, 3), (1, 1), (33, 1500)])
def test_every_weight_is_within_half_a_step(block: int, shape: tuple[int, int]) -> None:
    weight = matrix(*shape)
    blocks = quantize(weight, block)
    count = -(-shape[0] // block)
    assert blocks.packed.shape == (shape[1], count, block // 2) and blocks.packed.dtype == np.uint8
    assert blocks.scales.shape == (shape[1], count) and blocks.scales.dtype == np.float32
    step = np.repeat(np.abs(blocks.scales), block, axis=1)[:, : shape[0]].T
    error = np.abs(dequantize(blocks, shape[0]) - weight)
    # Integers end at +7: near +8, where the largest value is -8, the error is a whole step.
    assert (error <= step * 1.0001).all()
    assert (error <= step * 0.5001).mean() > 0.9


def test_the_layout_is_as_written_out_by_hand() -> None:
    """Two outputs, two blocks of 16 inputs: four bits each, in the inputs' order, the lower ones first."""
    integers = np.random.default_rng(1).integers(0, 16, (2, 2, 16))
    integers[:, :, 3] = 0  # -8 in every block: the value of largest magnitude
    scales = np.array([[0.5, 2.0], [1.0, 0.25]], np.float32)
    weight = ((integers - 8) * scales[..., None]).reshape(2, 32).T.astype(np.float32)
    blocks = quantize(weight, 16)
    np.testing.assert_array_equal(blocks.scales, scales)
    for n in range(2):
        for b in range(2):
            for i in range(8):
                low, high = integers[n, b, 2 * i], integers[n, b, 2 * i + 1]
                assert blocks.packed[n, b, i] == low | high << 4
    np.testing.assert_array_equal(dequantize(blocks, 32), weight)


def test_zero_and_largest_values_are_exact() -> None:
    weight = np.zeros((64, 2), np.float32)
    weight[5, 0], weight[40, 1] = 3.7, -0.01
    np.testing.assert_array_equal(dequantize(quantize(weight, 32), 64), weight)


def test_quantizing_the_residual_gives_eight_bits() -> None:
    weight = matrix(256, 40)
    first = quantize(weight, 32)
    second = quantize(residual(weight, first), 32)
    missed = weight - dequantize(first, 256)
    still = missed - dequantize(second, 256)
    rms = [float(np.sqrt((e**2).mean() / (weight**2).mean())) for e in (missed, still)]
    assert 0.05 < rms[0] < 0.12 and rms[1] < rms[0] / 10


def test_fp16_weights_give_the_same_blocks() -> None:
    weight = matrix(64, 7).astype(np.float16)
    found, expected = quantize(weight, 32), quantize(weight.astype(np.float32), 32)
    np.testing.assert_array_equal(found.packed, expected.packed)


def test_many_outputs_give_what_single_outputs_give() -> None:
    weight = matrix(32, 2500)
    found = quantize(weight, 32)
    one = [quantize(weight[:, i : i + 1], 32) for i in (0, 1023, 1024, 2499)]
    some = Blocks(found.packed[[0, 1023, 1024, 2499]], found.scales[[0, 1023, 1024, 2499]])
    np.testing.assert_array_equal(some.packed, np.concatenate([o.packed for o in one]))


@pytest.mark.parametrize("round_, lowest", [(quantize_positive, -8), (quantize_symmetric, -7)])
def test_other_scales_are_positive_and_exact_in_fp16(
    round_: Callable[[np.ndarray, int], Blocks], lowest: int
) -> None:
    weight = matrix(160, 300)
    blocks = round_(weight, 32)
    assert (blocks.scales > 0).all() and blocks.scales.dtype == np.float32
    np.testing.assert_array_equal(blocks.scales, blocks.scales.astype(np.float16))
    integers = integers_of(blocks, 160)
    assert (integers.min(), integers.max()) == (lowest, 7) and integers.dtype == np.int8
    groups = weight.T.reshape(300, 5, 32)
    expected = np.maximum(groups.max(-1) / 7, groups.min(-1) / lowest)
    np.testing.assert_allclose(blocks.scales, expected, rtol=1e-3)
    # The largest value of a block may be just above 7 steps: its scale is rounded.
    step = np.repeat(blocks.scales, 32, axis=1).T
    np.testing.assert_array_less(np.abs(dequantize(blocks, 160) - weight), step * 0.51)


def test_integers_are_in_the_order_of_inputs() -> None:
    integers = np.random.default_rng(2).integers(-8, 8, (40, 3)).astype(np.int8)
    integers[[3, 35]] = -8
    blocks = quantize_positive(integers * np.float32(0.5), 32)
    np.testing.assert_array_equal(integers_of(blocks, 40), integers)
    np.testing.assert_array_equal(blocks.scales, np.full((3, 2), 0.5))


@pytest.mark.parametrize("number", [0.0, 1e-9, 1e-6])
def test_tiny_weights_have_a_positive_scale(number: float) -> None:
    """Off by no more than 7 times half of fp16's smallest number, by which a scale is rounded."""
    blocks = quantize_positive(np.full((32, 1), number, np.float32), 32)
    assert blocks.scales > 0 and np.abs(dequantize(blocks, 32) - number).max() <= 7 * 2.0**-25
