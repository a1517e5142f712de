"""Statistics of inputs: ranges, channels, merging, resuming."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lira_calib.methods.statistics import METHODS, InputStatistics, best_range, rounded
from lira_engine.errors import LiraError


def normal(rows: int, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def of(*parts: np.ndarray, sample_rows: int = 256) -> InputStatistics:
    statistics = InputStatistics(sample_rows)
    for part in parts:
        statistics.add("w", part)
    return statistics


def assert_equal(a: InputStatistics, b: InputStatistics) -> None:
    assert list(a) == list(b) and a.rows("w") == b.rows("w")
    assert (a.low("w"), a.high("w")) == (b.low("w"), b.high("w"))
    assert (a.channel_largest("w") == b.channel_largest("w")).all()
    np.testing.assert_allclose(a.channel_mean("w"), b.channel_mean("w"), rtol=1e-6)
    assert (a.sample("w") == b.sample("w")).all()
    for method in METHODS:
        assert a.ranges("w", method) == b.ranges("w", method)


def test_extremes_and_channels_are_those_of_all_rows() -> None:
    rows = normal(1000)
    rows[7, 3] = -9
    statistics = of(rows[:400], rows[400:].reshape(2, 300, 16))
    assert statistics.rows("w") == 1000
    assert (statistics.low("w"), statistics.high("w")) == (-9, rows.max())
    np.testing.assert_array_equal(statistics.channel_largest("w"), np.abs(rows).max(axis=0))
    np.testing.assert_allclose(statistics.channel_mean("w"), np.abs(rows).mean(axis=0), rtol=1e-5)
    assert statistics.ranges("w", "minmax") == (-9, rows.max())


def test_the_smoothed_range_is_that_of_the_smoothed_rows() -> None:
    rows, scale = normal(1000), np.geomspace(0.1, 10, 16).astype(np.float32)
    low, high = of(rows[:500], rows[500:]).smoothed_range("w", scale)
    assert (low, high) == ((rows / scale).min(), (rows / scale).max())


def test_percentile_and_entropy_cut_a_rare_outlier(capsys: pytest.CaptureFixture[str]) -> None:
    rows = normal(20_000)
    rows[5, 5] = 60
    statistics = of(rows)
    low, high = statistics.ranges("w", "percentile")
    expected = np.percentile(rows, (0.005, 99.995))
    np.testing.assert_allclose((low, high), expected, atol=0.05)
    low, high = statistics.ranges("w", "entropy")
    assert 3 < high < 15 and rows.min() <= low < -3
    assert capsys.readouterr().out == ""  # the library prints its progress


def test_of_values_without_negatives_no_range_is_below_zero() -> None:
    statistics = of(np.maximum(normal(5000), 0))
    for method in METHODS:
        low, high = statistics.ranges("w", method)
        assert low == 0 and 2 < high <= statistics.high("w")


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_parts_of_any_size_merge_into_one_pass(scale: float) -> None:
    rows = normal(3000, 24)
    rows[2000:] *= np.float32(scale)  # histograms of other widths
    rows[100:200] = 0
    parts = [rows[:7], rows[7:1000], rows[1000:2500], rows[2500:]]
    merged = of(*parts[2:])
    merged.merge(of(*parts[:2]))
    assert_equal(of(rows), merged)
    assert_equal(of(rows), of(*reversed(parts)))


def test_memory_stays_small() -> None:
    statistics = of(normal(100_000, 8), np.float32(1e8) * normal(10, 8), sample_rows=50)
    kept = vars(statistics._inputs["w"]).values()
    assert sum(array.nbytes for array in kept if isinstance(array, np.ndarray)) < 90_000
    assert statistics.sample("w").shape == (50, 8)


def test_the_sample_holds_rows_of_every_part_once() -> None:
    a, b = normal(500, seed=1), normal(500, seed=2)
    sample = of(a, b, a).sample("w")
    assert sample.shape == (256, 16) and len(np.unique(sample, axis=0)) == 256
    from_a = sum(bool((a == row).all(axis=1).any()) for row in sample)
    from_b = sum(bool((b == row).all(axis=1).any()) for row in sample)
    assert from_a + from_b == 256 and min(from_a, from_b) > 80


def test_what_is_saved_goes_on(tmp_path: Path) -> None:
    a, b = normal(300, seed=1), normal(300, seed=2)
    first = of(a)
    first.seen.append("picture 1")
    first.save(tmp_path / "statistics.safetensors")
    again = InputStatistics.load(tmp_path / "statistics.safetensors")
    assert again.seen == ["picture 1"] and again.sample_rows == 256
    again.add("w", b)
    assert_equal(of(a, b), again)
    assert [path.name for path in tmp_path.iterdir()] == ["statistics.safetensors"]


def test_merging_joins_what_was_seen_once() -> None:
    a, b = InputStatistics(), InputStatistics()
    a.seen, b.seen = ["one", "two"], ["two", "three"]
    a.merge(b)
    assert a.seen == ["one", "two", "three"]


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "statistics.safetensors"
    of(normal(10)).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(LiraError, match="holds no statistics of a calibration"):
        InputStatistics.load(path)
    path.unlink()
    with pytest.raises(LiraError, match="holds no statistics of a calibration"):
        InputStatistics.load(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(value: float) -> None:
    rows = normal(10)
    rows[3, 3] = value
    with pytest.raises(LiraError, match=r"the input of layers\.0\.q holds values that are not finite"):
        InputStatistics().add("layers.0.q", rows)


def test_unknown_weights_and_methods_are_refused() -> None:
    with pytest.raises(LiraError, match="saw no input of other"):
        of(normal(10)).ranges("other", "minmax")
    with pytest.raises(LiraError, match="expected minmax, percentile, entropy"):
        of(normal(10)).ranges("w", "mse")


def test_a_constant_input_has_a_range() -> None:
    for method in METHODS:
        assert of(np.full((4, 8), 2, np.float32)).ranges("w", method) == (2, 2)
        assert of(np.zeros((4, 8), np.float32)).ranges("w", method) == (0, 0)


@pytest.mark.parametrize("rounding", ["unsigned", "signed", "fp8"])
@pytest.mark.parametrize("outlier", [0, 500])
def test_the_best_range_has_the_smallest_error(outlier: float, rounding: str) -> None:
    rows, values = normal(4000), normal(16, 8, seed=3)
    if outlier:
        rows[0, 0] = outlier  # one value in 64,000, in a row that the sample lacks
    statistics = of(rows)
    method, found = best_range(statistics, "w", values, rounding)
    errors = {}
    for name in METHODS:
        moved = rounded(rows[1:], *statistics.ranges("w", name), rounding) - rows[1:]
        errors[name] = np.square(moved @ values).mean()
    assert found == statistics.ranges("w", method)
    assert errors[method] < 1.05 * min(errors.values())
    if outlier and rounding != "fp8":
        assert errors["minmax"] > 100 * errors[method]


@pytest.mark.parametrize("rounding, error", [("unsigned", 0.01), ("signed", 0.012), ("fp8", 0.03)])
def test_rounding_errs_as_its_bits_say_and_clips(rounding: str, error: float) -> None:
    rows = normal(1000)
    found = rounded(rows, float(rows.min()), float(rows.max()), rounding)
    relative = np.sqrt(np.square(found - rows).mean() / np.square(rows).mean())
    assert error / 3 < relative < error
    assert (rounded(np.zeros((1, 4), np.float32), -1.234, 5, rounding) == 0).all()
    np.testing.assert_allclose(rounded(np.full((1, 1), 9.0, np.float32), -1, 1, rounding), 1, rtol=0.01)


def test_an_unknown_rounding_is_refused() -> None:
    with pytest.raises(ValueError, match="expected unsigned, signed or fp8"):
        rounded(normal(1), -1, 1, "int4")
