"""What it costs to store a weight in blocks of 4-bit integers, and which block is worth it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lira_calib.methods.gram import output_error
from lira_engine.lowering.int4_blocks import Blocks, dequantize, quantize_positive

SAMPLED_COLUMNS = 512
"""Outputs whose error stands for all of a large weight's."""


@dataclass(frozen=True)
class Rounding:
    """The error of a rounded weight: `weight` of its values, as a share of them, `output` of what its matmul
    makes of the rows that it reads. Both are root mean squares."""

    weight: float
    output: float


def nearest(weight: np.ndarray, block: int) -> Blocks:
    """Round a weight [K, N] as builds do with the form int4 "nearest"."""
    return quantize_positive(weight, block)


def rounding(weight: np.ndarray, stored: Blocks, gram: np.ndarray) -> Rounding:
    """Return the error of a weight [K, N] that is stored as `stored`.

    gram: sum of x x^T over the rows x that the weight's matmul reads, [K, K]. Of large weights some outputs
    are measured.
    """
    columns = sampled(weight.shape[1])
    exact = weight[:, columns].astype(np.float32)
    change = dequantize(Blocks(stored.packed[columns], stored.scales[columns]), len(weight)) - exact
    return Rounding(
        _ratio(np.square(change).sum(dtype=np.float64), np.square(exact).sum(dtype=np.float64)),
        _ratio(output_error(change, gram).sum(), output_error(exact, gram).sum()),
    )


def sampled(outputs: int) -> slice:
    """Return every n-th output, such that they are at most `SAMPLED_COLUMNS`."""
    return slice(None, None, max(1, -(-outputs // SAMPLED_COLUMNS)))


def _ratio(error: float, whole: float) -> float:
    return float(np.sqrt(error / whole)) if whole > 0 else 0.0
