"""Round weights to 4 bits by GPTQ (Frantar et al., 2022).

Inputs are rounded one after the other, and those that follow make up for the error, as far as the rows of the
calibration allow. `onnxruntime.quantization` has a function of this name, up to 1.32 at least, which reads
the upper triangular factor of the inverse by columns: these are zero below the diagonal, so nothing makes up
for anything, and what it returns equals rounding to nearest.
"""

from __future__ import annotations

import numpy as np

from lira_calib.methods.gram import output_error
from lira_calib.methods.int4 import nearest
from lira_engine.errors import LiraError
from lira_engine.lowering.int4_blocks import Blocks, dequantize, quantize_positive

DAMPING = (0.01, 0.1, 1.0)
"""Shares of the mean square of an input that are added to the square of each, the next one where the inverse
fails."""
TOGETHER = 128
"""Inputs whose errors reach each other at once; those behind them get the sum. A multiple of every block."""
VALUES_AT_ONCE = 1 << 25
"""Values of a weight that are rounded together; each takes about 16 bytes."""
LARGEST, SMALLEST = 7, -8


def gptq_codes(weight: np.ndarray, hessian: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Round a weight [K, N] to blocks of 4-bit integers.

    Args:
        hessian: sum of x x^T over the rows x that the weight's matmul reads, [K, K]; any factor is fine.

    Returns:
        packed [N, ceil(K / block), block / 2] uint8 and scales [N, ceil(K / block)] float32, as
        `StageRecipe.codes`. An output for which rounding to nearest has a smaller error gets that.

    Raises LiraError for a Hessian that is not finite.
    """
    if not np.isfinite(hessian).all():
        raise LiraError(
            "the rows that a weight reads are not finite: check the bundle with `lira-edge verify`"
        )
    factor = _factor(hessian)
    step = max(1, VALUES_AT_ONCE // len(weight))
    parts = [
        _better(weight[:, start : start + step].astype(np.float32), hessian, factor, block)
        for start in range(0, weight.shape[1], step)
    ]
    packed, scales = zip(*((part.packed, part.scales) for part in parts), strict=True)
    return np.concatenate(packed), np.concatenate(scales)


def _factor(hessian: np.ndarray) -> np.ndarray:
    """Return U [K, K] float32, upper triangular, with U^T U the inverse of the damped Hessian."""
    damped = hessian.astype(np.float64)
    diagonal = np.einsum("kk->k", damped)  # a view
    diagonal[diagonal == 0] = 1  # no row reached this input
    mean, added = float(diagonal.mean()), 0.0
    for damping in DAMPING:
        diagonal += damping * mean - added
        added = damping * mean
        try:
            # From the last input to the first, the lower factor is the upper one.
            upper = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
        except np.linalg.LinAlgError:
            continue
        return _inverse(upper).astype(np.float32)
    raise LiraError("the rows that a weight reads have no inverse: calibrate on more pictures")


def _inverse(upper: np.ndarray) -> np.ndarray:
    """Return the inverse of an upper triangular matrix [K, K], by halves."""
    half = len(upper) // 2
    if half < TOGETHER:
        found: np.ndarray = np.linalg.inv(upper)
        return found
    inverse = np.zeros_like(upper)
    first, last = _inverse(upper[:half, :half]), _inverse(upper[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = first, last
    inverse[:half, half:] = -first @ upper[:half, half:] @ last
    return inverse


def _better(weight: np.ndarray, hessian: np.ndarray, factor: np.ndarray, block: int) -> Blocks:
    """Return each output as GPTQ rounds it, or to nearest where that loses less."""
    found, plain = _gptq(weight.copy(), factor, block), nearest(weight, block)
    errors = [output_error(dequantize(one, len(weight)) - weight, hessian) for one in (found, plain)]
    worse = errors[0] > errors[1]
    found.packed[worse], found.scales[worse] = plain.packed[worse], plain.scales[worse]
    return found


def _gptq(weight: np.ndarray, factor: np.ndarray, block: int) -> Blocks:
    """Round a weight [K, N] float32, which is used up."""
    inputs, outputs = weight.shape
    count = -(-inputs // block)
    integers = np.zeros((count * block, outputs), np.int8)
    scales = np.empty((count, outputs), np.float32)
    for start in range(0, inputs, TOGETHER):
        stop = min(start + TOGETHER, inputs)
        errors = np.empty((stop - start, outputs), np.float32)
        for i in range(start, stop):
            if i % block == 0:  # the scale of what the inputs before have made of the block
                scales[i // block] = quantize_positive(weight[i : i + block], block).scales[:, 0]
            scale = scales[i // block]
            rounded = np.rint(weight[i] / scale).clip(SMALLEST, LARGEST)
            integers[i] = rounded
            errors[i - start] = (weight[i] - rounded * scale) / factor[i, i]
            weight[i + 1 : stop] -= factor[i, i + 1 : stop, None] * errors[i - start]
        weight[stop:] -= factor[start:stop, stop:].T @ errors
    rows = (integers + 8).astype(np.uint8).T.reshape(outputs, count, block)
    return Blocks(rows[..., 0::2] | rows[..., 1::2] << 4, np.ascontiguousarray(scales.T))
