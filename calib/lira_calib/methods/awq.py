"""Scale channels so that weights in 4 bits keep what matters (AWQ; Lin et al., 2023).

A channel whose activations are large is divided by a scale, and its rows of the weights are multiplied by it:
there rounding weighs less. The scale is the channel's mean magnitude to a power, which is chosen by the error
on some of the rows that the matmuls read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from lira_calib.methods.int4 import nearest, sampled
from lira_engine.engines.recipe import Smoothing
from lira_engine.lowering.int4_blocks import dequantize

POWERS = tuple(step / 20 for step in range(1, 20))
"""Powers of the mean magnitude that are tried."""
_FLOOR = 1e-4  # of the mean: what is smaller counts as this


class ReadRows(Protocol):
    """What is known of the rows that matmuls read, by weight (lira_calib.methods.statistics)."""

    def channel_mean(self, weight: str) -> np.ndarray:
        """Return the mean magnitude of each channel, [K] float32."""
        ...

    def sample(self, weight: str) -> np.ndarray:
        """Return some of the rows, [n, K] float32."""
        ...


def awq_smoothing(
    groups: Sequence[Smoothing],
    statistics: ReadRows,
    weights: Callable[[str], np.ndarray],
    block: int,
    powers: Sequence[float] = POWERS,
) -> list[tuple[Smoothing, np.ndarray]]:
    """Return the groups whose weights lose less in 4 bits under a scale, each with it: [K] float32, positive.

    Args:
        groups: of lira_calib.methods.smoothing. weights: name -> [K, N].
        block: inputs that share a scale in 4 bits.
    """
    found = []
    for group in groups:
        first = group.multiplied[0]  # they read the same rows
        values = [weights(name) for name in group.multiplied]
        scale = best_scale(values, statistics.sample(first), statistics.channel_mean(first), block, powers)
        if scale is not None:
            found.append((group, scale))
    return found


def best_scale(
    weights: Sequence[np.ndarray],
    rows: np.ndarray,
    magnitude: np.ndarray,
    block: int,
    powers: Sequence[float] = POWERS,
) -> np.ndarray | None:
    """Return the scale [K] float32 under which `weights` [K, N], which all read `rows` [n, K], lose least in
    4 bits; None if none is better than no scale.

    Args:
        magnitude: mean magnitude of the channels, [K]. Of large weights some outputs are judged.
    """
    some = [weight[:, sampled(weight.shape[1])].astype(np.float32) for weight in weights]
    least, best = _loss(some, rows, np.ones(len(magnitude), np.float32), block), None
    for power in powers:
        scale = scale_of(magnitude, power)
        loss = _loss(some, rows, scale, block)
        if loss < least:
            least, best = loss, scale
    return best


def scale_of(magnitude: np.ndarray, power: float) -> np.ndarray:
    """Return magnitudes [K] to a power, in float32; the smallest times the largest is 1."""
    floor = _FLOOR * float(magnitude.mean())
    scale = np.maximum(magnitude.astype(np.float64), floor if floor > 0 else 1.0) ** power
    scaled: np.ndarray = (scale / np.sqrt(scale.max() * scale.min())).astype(np.float32)
    return scaled


def _loss(weights: Sequence[np.ndarray], rows: np.ndarray, scale: np.ndarray, block: int) -> float:
    """Return the sum of squares by which rounding the scaled weights moves their outputs, each as a share of
    the outputs'."""
    total = 0.0
    for weight in weights:
        rounded = dequantize(nearest(weight * scale[:, None], block), len(weight)) / scale[:, None]
        whole = float(np.square(rows @ weight).sum(dtype=np.float64))
        moved = float(np.square(rows @ (rounded - weight)).sum(dtype=np.float64))
        total += moved / whole if whole > 0 else 0.0
    return total
