"""What a budget's text means, and what of it a score takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pytest

from lira_calib.choosing.budget import limits, parse_budget, use
from lira_engine.engines.recipe import Budget
from lira_engine.errors import LiraError


@dataclass
class Rates:
    """A score whose sequences are all alike, but for the falls that `extra` adds to some of them."""

    now: dict[str, float]
    was: dict[str, float]
    extra: tuple[float, ...] = (0.0,) * 10

    @property
    def sequences(self) -> tuple[float, ...]:
        return self.extra

    def metric(self, name: str) -> float:
        return self.now[name] - sum(self.extra) / len(self.extra)

    def reference(self, name: str) -> float:
        return self.was[name]

    def of(self, numbers: Iterable[int]) -> Rates:
        return Rates(self.now, self.was, tuple(self.extra[number] for number in numbers))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cIoU -0.5%", Budget("cIoU -0.5%", "ciou", 0.005)),
        (" ciou  - 1 % ", Budget("cIoU -1%", "ciou", 0.01)),
        ("IoU \u22122.25%", Budget("IoU -2.25%", "iou", 0.0225)),
        ("tokens -0.5%", Budget("tokens -0.5%", "tokens", 0.005)),
    ],
)
def test_budgets(text: str, expected: Budget) -> None:
    assert parse_budget(text) == expected


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "such as"),
        ("cIoU", "such as"),
        ("cIoU 0.5%", "such as"),
        ("cIoU +0.5%", "such as"),
        ("cIoU -0.5", "such as"),
        ("-0.5%", "such as"),
        ("cIoU -1e999%", "such as"),
        ("mAP -0.5%", "cIoU, IoU, tokens"),
        ("cIoU -0%", "can never"),
        ("cIoU -101%", "can never"),
    ],
)
def test_a_bad_budget_says_what_was_expected(text: str, named: str) -> None:
    with pytest.raises(LiraError) as refused:
        parse_budget(text)
    assert named in str(refused.value) and repr(text) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_budget_for_masks_bounds_the_tokens_too() -> None:
    assert limits(parse_budget("cIoU -0.5%")) == {"ciou": 0.005, "tokens": 0.01}
    assert limits(parse_budget("IoU -3%")) == {"iou": 0.03, "tokens": 0.03}
    assert limits(parse_budget("tokens -0.5%")) == {"tokens": 0.005}


def test_the_worst_metric_decides() -> None:
    budget = parse_budget("cIoU -0.5%")
    was = {"ciou": 0.9, "tokens": 1.0}
    half = use(budget, Rates({"ciou": 0.8975, "tokens": 0.999}, was))
    assert half.share == pytest.approx(0.5) and half.within
    better = use(budget, Rates({"ciou": 0.95, "tokens": 1.0}, was))
    assert better.share == 0 and better.within and better.falls == {"ciou": 0, "tokens": 0}
    wordy = use(budget, Rates({"ciou": 0.9, "tokens": 0.97}, was))
    assert wordy.share == pytest.approx(3) and not wordy.within
    assert not use(budget, Rates({"ciou": 0.894, "tokens": 1.0}, was)).within


def test_a_fall_that_few_sequences_decide_needs_room() -> None:
    """One of ten sequences loses 4 points: 0.4 on average, but a fourth of the resamples draw it twice."""
    budget = parse_budget("IoU -0.5%")
    was = {"iou": 1.0, "tokens": 1.0}
    even = use(budget, Rates(was, was, (0.004,) * 10))
    assert even.within and even.share == pytest.approx(0.8)
    odd = use(budget, Rates(was, was, (0.04, *(0.0,) * 9)))
    assert odd.falls["iou"] == pytest.approx(0.004) and not odd.within
    assert odd == use(budget, Rates(was, was, (0.04, *(0.0,) * 9)))


class Lucky(Rates):
    """A score that fell by nothing in any resample, as a metric that one picture decides may."""

    def of(self, numbers: Iterable[int]) -> Rates:
        return Rates(self.was, self.was)


def test_lucky_resamples_hide_no_fall() -> None:
    found = use(parse_budget("IoU -0.5%"), Lucky({"iou": 0.99, "tokens": 1.0}, {"iou": 1.0, "tokens": 1.0}))
    assert found.likely["iou"] == found.falls["iou"] == pytest.approx(0.01) and not found.within
