"""How far engines agree with fp32 and with the truth on given answers, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lira_bench.metrics import intersection_and_union, iou
from lira_calib.judging.question import Question
from lira_engine.engines.judgement import Loss
from lira_runtime import rle

_RESAMPLED = 2000
_SURE = 0.95


class Agreement:
    """Sums over pictures, of which resampling makes intervals.

    Metrics, as shares of 1, like those by which recipes are chosen (`lira_calib.scoring.scores.Score`):
    "tokens", next tokens that are those of fp32; of the masks that an answer shows "iou", their mean IoU with
    those of fp32, and "ciou", summed intersections over summed unions with the true ones, or with those of
    fp32 where nothing is annotated; "fp32 ciou" is that of fp32's own masks.
    """

    def __init__(self) -> None:
        # Of each picture: tokens, agreed, masks, sum of IoU, intersection, union, and fp32's two.
        self._sums: dict[str, np.ndarray] = {}
        self.questions = 0

    @property
    def pictures(self) -> int:
        return len(self._sums)

    def add(self, question: Question, chosen: Sequence[int], masks: Sequence[np.ndarray]) -> None:
        """Add an answer. chosen: the tokens in the places of `question.tokens`; masks: bool [H, W], one for
        each `[SEG]`. Missing tokens count as disagreement, missing masks as empty ones."""
        self.questions += 1
        sums = self._sums.setdefault(question.picture, np.zeros(8))
        sums[0] += len(question.expected)
        sums[1] += sum(a == b for a, b in zip(chosen, question.expected, strict=False))
        for number in question.shown:
            expected = rle.decode(question.fp32[number])
            truth = rle.decode(question.given[number]) if question.annotated else expected
            found = masks[number] if number < len(masks) else np.zeros_like(expected)
            sums[2] += 1
            sums[3] += iou(found, expected)
            sums[4:6] += intersection_and_union(found, truth)
            sums[6:8] += intersection_and_union(expected, truth)

    def metrics(self) -> dict[str, float]:
        """Return the metrics that the answers have: without masks none of masks."""
        return {name: float(value) for name, value in _metrics(self._by_picture().sum(axis=0)).items()}

    def _by_picture(self) -> np.ndarray:
        return np.stack(list(self._sums.values()))  # [P, 8]

    def losses(self, limits: dict[str, float]) -> dict[str, Loss]:
        """Return how far each metric fell below that of fp32, with an interval from resampling pictures."""
        by_picture = self._by_picture()
        count = len(by_picture)
        drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=_RESAMPLED)
        found, resampled = _losses(by_picture.sum(axis=0)), _losses((drawn @ by_picture).T)
        edges = (50 * (1 - _SURE), 50 * (1 + _SURE))
        losses = {}
        for name, loss in found.items():
            low, high = np.nanpercentile(resampled[name], edges)
            losses[name] = Loss(float(loss), float(low), float(high), limits.get(name))
        return losses


def _metrics(sums: np.ndarray) -> dict[str, np.ndarray]:
    """sums [8] or [8, N] -> metrics, each a number or [N]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            "tokens": sums[1] / sums[0],
            "iou": sums[3] / sums[2],
            "ciou": sums[4] / sums[5],
            "fp32 ciou": sums[6] / sums[7],
        }
    return {name: value for name, value in found.items() if not np.isnan(value).all()}


def _losses(sums: np.ndarray) -> dict[str, np.ndarray]:
    found = _metrics(sums)
    return {
        name: found.get(f"fp32 {name}", np.float64(1.0)) - value
        for name, value in found.items()
        if not name.startswith("fp32 ")
    }
