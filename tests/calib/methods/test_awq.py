"""Channels that matter are scaled so that four bits keep them."""

from __future__ import annotations

import numpy as np
import pytest

from lira_calib.methods.awq import awq_smoothing, best_scale, scale_of
from lira_calib.methods.int4 import SAMPLED_COLUMNS, nearest
from lira_calib.methods.statistics import InputStatistics
from lira_engine.engines.recipe import Smoothing
from lira_engine.lowering.int4_blocks import dequantize

K = 64


def rows(large: float, seed: int = 0) -> np.ndarray:
    """Rows [R, K] with a few channels that are `large` times the rest."""
    x = np.random.default_rng(seed).standard_normal((200, K), np.float32)
    x[:, [3, 30]] *= large
    return x


WEIGHTS = {
    name: np.random.default_rng(i).standard_normal((K, 32), np.float32) for i, name in enumerate("qkv", 1)
}


def moved(x: np.ndarray, scale: np.ndarray | None) -> float:
    """What rounding the weights to nearest does to their outputs."""
    scale = np.ones(K, np.float32) if scale is None else scale
    total = 0.0
    for weight in WEIGHTS.values():
        rounded = dequantize(nearest(weight * scale[:, None], 32), K)
        total += float(np.square((x / scale) @ rounded - x @ weight).sum())
    return total


def test_large_channels_lose_less() -> None:
    x = rows(20)
    scale = best_scale(list(WEIGHTS.values()), x, np.abs(x).mean(axis=0), 32)
    assert scale is not None and scale.dtype == np.float32 and (scale > 0).all()
    assert min(scale[3], scale[30]) > 2 * np.median(scale)
    assert moved(x, scale) < 0.5 * moved(x, None)
    assert moved(rows(20, seed=9), scale) < 0.6 * moved(rows(20, seed=9), None)


def test_the_best_of_the_powers_is_taken() -> None:
    x = rows(20)
    magnitude = np.abs(x).mean(axis=0)
    powers = (0.2, 0.5, 0.9)
    found = best_scale(list(WEIGHTS.values()), x, magnitude, 32, powers)
    losses = [moved(x, scale_of(magnitude, power)) for power in powers]
    np.testing.assert_array_equal(found, scale_of(magnitude, powers[int(np.argmin(losses))]))


def test_groups_without_a_better_scale_are_left_out() -> None:
    """All channels are alike to the first group; the second has large ones."""
    alike, large = np.sign(rows(1)), rows(20)
    statistics = InputStatistics()
    weights = {**WEIGHTS, "gate": WEIGHTS["q"], "up": WEIGHTS["k"]}
    for name in WEIGHTS:
        statistics.add(name, alike)
    for name in ("gate", "up"):
        statistics.add(name, large)
    groups = [Smoothing("attention", ("norm",), tuple("qkv")), Smoothing("mlp", ("norm2",), ("gate", "up"))]
    found = awq_smoothing(groups, statistics, weights.__getitem__, 32)
    assert [group.name for group, _ in found] == ["mlp"]
    ((_, scale),) = found
    assert scale.shape == (K,) and min(scale[3], scale[30]) > 2 * np.median(scale)


def test_some_outputs_of_a_large_weight_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[int] = []

    def counted(weight: np.ndarray, block: int) -> object:
        judged.append(weight.shape[1])
        return nearest(weight, block)

    monkeypatch.setattr("lira_calib.methods.awq.nearest", counted)
    x = rows(20)
    wide = np.random.default_rng(5).standard_normal((K, 3 * SAMPLED_COLUMNS), np.float32)
    assert best_scale([wide], x, np.abs(x).mean(axis=0), 32) is not None
    assert max(judged) <= SAMPLED_COLUMNS


def test_scales_are_centred_and_channels_of_zeros_stay_finite() -> None:
    magnitude = np.array([0.0, 1.0, 4.0])
    scale = scale_of(magnitude, 0.5)
    assert scale.max() * scale.min() == pytest.approx(1)
    assert np.isfinite(scale).all() and (scale > 0).all()
    np.testing.assert_array_equal(scale_of(np.zeros(3), 0.5), np.ones(3))
