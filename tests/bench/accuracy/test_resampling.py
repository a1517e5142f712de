"""Intervals of differences between two engines on the same pictures."""

from __future__ import annotations

import numpy as np
import pytest

from lira_bench.accuracy.items import Dataset, Evaluation, Item, Record
from lira_bench.accuracy.resampling import counts, difference, ratio


def test_equal_engines_differ_by_nothing_at_all() -> None:
    same = {f"{i}.png": (float(i), 20.0) for i in range(20)}
    found = difference(same, same)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_pairing_takes_out_what_is_hard_for_both() -> None:
    """Pictures differ by tens of points, the engines by one point on each of them."""
    hard = np.random.default_rng(1).uniform(0.2, 0.9, 50)
    first = {f"{i}.png": (share * 100, 100.0) for i, share in enumerate(hard)}
    other = {f"{i}.png": (share * 100 - 1, 100.0) for i, share in enumerate(hard)}
    found = difference(other, first)
    assert found.value == pytest.approx(-0.01)
    assert found.low == pytest.approx(-0.01) and found.high == pytest.approx(-0.01)


def test_the_interval_has_the_width_of_the_standard_error() -> None:
    """An accuracy that changes by a random amount per picture: the middle 95 % are 1.96 standard errors."""
    change = np.random.default_rng(2).normal(0.0, 0.05, 400)
    first = {f"{i:03d}.png": (0.5, 1.0) for i in range(400)}
    other = {f"{i:03d}.png": (0.5 + by, 1.0) for i, by in enumerate(change)}
    found = difference(other, first)
    error = change.std() / 20
    assert found.value == pytest.approx(change.mean())
    assert found.high - found.value == pytest.approx(1.96 * error, rel=0.1)
    assert found.value - found.low == pytest.approx(1.96 * error, rel=0.1)
    assert difference(other, first) == found  # the same draws each time


def test_a_ratio_sums_over_pictures_first() -> None:
    assert ratio({"a": (1.0, 2.0), "b": (1.0, 8.0)}) == pytest.approx(0.2)
    assert np.isnan(ratio({}))


def test_other_pictures_are_no_pair() -> None:
    with pytest.raises(ValueError, match="not the same"):
        difference({"a": (1.0, 1.0)}, {"b": (1.0, 1.0)})


def evaluation(*records: tuple[str, Record], words: tuple[str, ...] = ()) -> Evaluation:
    items = [
        Item(f"k{i}", image, (), {}, words=words if "ranked" in record["scores"] else ())
        for i, (image, record) in enumerate(records)
    ]
    by_key = {item.key: record for item, (_, record) in zip(items, records, strict=True)}
    return Evaluation({}, {}, {}, [], Dataset(tuple(items)), by_key)


def test_counts_are_summed_by_picture() -> None:
    found = evaluation(
        ("a.png", {"scores": {"intersection": 3, "union": 4}}),
        ("b.png", {"scores": {"intersection": 1, "union": 6}}),
        ("a.png", {"scores": {"intersection": 0, "union": 2}}),
    )
    assert counts(found, "ciou") == {"a.png": (3, 6), "b.png": (1, 6)}


def test_only_pairs_count_for_paired_accuracy() -> None:
    answers = [{"text": "Yes"}, {"text": "No"}]
    found = evaluation(
        ("a.png", {"scores": {"kind": "color"}, "answers": answers}),
        ("a.png", {"scores": {"kind": "color"}, "answers": answers[::-1]}),
        ("a.png", {"scores": {"kind": "color", "ranked": []}, "answers": answers}),
        words=("red", "blue"),
    )
    assert counts(found, "paired") == {"a.png": (1, 2)}
