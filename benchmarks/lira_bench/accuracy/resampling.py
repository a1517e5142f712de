"""Intervals for the difference of two evaluations of the same pictures, by resampling the pictures.

Answers about one picture are right or wrong together, so pictures are drawn, not questions; and both engines
answered about the same ones, so that what is hard for both cancels (a paired bootstrap).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lira_bench.accuracy.items import Evaluation, Record
from lira_bench.metrics import PairedAccuracy

DRAWS = 4000
LEVEL = 0.95

Counts = Mapping[str, tuple[float, float]]
"""By picture, the sums whose ratio over all pictures is a metric: (intersections, unions), (right, asked)."""


@dataclass(frozen=True)
class Difference:
    """A metric of other engines minus that of the first, and the bounds between which the middle LEVEL of
    the resampled differences lie."""

    value: float
    low: float
    high: float


def ratio(counts: Counts) -> float:
    """Return the metric over all pictures; nan without any."""
    above, below = np.sum([*counts.values(), (0.0, 0.0)], axis=0)
    return float(above / below) if below else float("nan")


def difference(other: Counts, first: Counts, draws: int = DRAWS, seed: int = 0) -> Difference:
    """Return the difference with its interval. Raises ValueError if the pictures are not the same."""
    if other.keys() != first.keys():
        raise ValueError(f"{len(other)} and {len(first)} pictures that are not the same")
    pictures = sorted(first)
    sums = np.array([[first[one], other[one]] for one in pictures], dtype=np.float64)  # [P, engines, 2]
    random = np.random.default_rng(seed)
    drawn = random.multinomial(len(pictures), np.full(len(pictures), 1 / len(pictures)), size=draws)
    totals = np.einsum("dp,pes->des", drawn, sums)  # [draws, engines, 2]
    with np.errstate(invalid="ignore"):
        metrics = totals[..., 0] / totals[..., 1]
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(metrics[:, 1] - metrics[:, 0], (tail, 1 - tail))
    return Difference(ratio(other) - ratio(first), float(low), float(high))


def counts(evaluation: Evaluation, metric: str) -> Counts:
    """Return a metric's sums by picture.

    metric: "ciou" of refseg; "recall" of gcg; "paired" of attreval; "tokens" or "masks" of an evaluation that
    was compared with another one: share of equal tokens, and mean IoU of the masks. Raises KeyError for
    others.
    """
    found: dict[str, tuple[float, float]] = {}
    of_item = _COUNTS[metric]
    for item, record in evaluation.scored:
        if metric == "paired" and item.words:
            continue
        above, below = of_item(record)
        was = found.get(item.image, (0.0, 0.0))
        found[item.image] = (was[0] + above, was[1] + below)
    return found


def _ciou(record: Record) -> tuple[float, float]:
    return record["scores"]["intersection"], record["scores"]["union"]


def _recall(record: Record) -> tuple[float, float]:
    return len(record["scores"]["matched"]), record["scores"]["truth"]


def _paired(record: Record) -> tuple[float, float]:
    pair = PairedAccuracy()
    pair.add(*(answer["text"] for answer in record["answers"]))
    return pair.right, pair.pairs


def _tokens(record: Record) -> tuple[float, float]:
    return record["agreement"]["agreed"], record["agreement"]["tokens"]


def _masks(record: Record) -> tuple[float, float]:
    return sum(record["agreement"]["mask_ious"]), len(record["agreement"]["mask_ious"])


_COUNTS = {"ciou": _ciou, "recall": _recall, "paired": _paired, "tokens": _tokens, "masks": _masks}
