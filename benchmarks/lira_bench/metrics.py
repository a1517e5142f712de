"""The field's accuracy measures, as plain functions of masks and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


def intersection_and_union(found: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """Pixels in both and in either of two masks, bool [H, W].

    Raises:
        ValueError: the shapes differ.
    """
    if found.shape != truth.shape:
        raise ValueError(f"masks of different size: {found.shape} and {truth.shape}")
    return int(np.count_nonzero(found & truth)), int(np.count_nonzero(found | truth))


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union; 1.0 where both masks are empty."""
    intersection, union = intersection_and_union(found, truth)
    return intersection / union if union else 1.0


@dataclass
class SegmentationScore:
    """cIoU (summed intersections over summed unions) and gIoU (mean IoU), as RefCOCO papers report them."""

    intersections: list[int] = field(default_factory=list)
    unions: list[int] = field(default_factory=list)

    def add(self, found: np.ndarray | None, truth: np.ndarray) -> None:
        """One expression; ``found`` is None where the model made no mask."""
        empty = np.zeros_like(truth)
        intersection, union = intersection_and_union(empty if found is None else found, truth)
        self.intersections.append(intersection)
        self.unions.append(union)

    @property
    def count(self) -> int:
        return len(self.unions)

    @property
    def ciou(self) -> float:
        return sum(self.intersections) / sum(self.unions) if sum(self.unions) else float("nan")

    @property
    def giou(self) -> float:
        pairs = zip(self.intersections, self.unions, strict=True)
        return float(np.mean([i / u if u else 1.0 for i, u in pairs])) if self.unions else float("nan")


def matched_pairs(
    found: Sequence[np.ndarray], truth: Sequence[np.ndarray], threshold: float = 0.5
) -> list[tuple[int, int, float]]:
    """One-to-one pairs (found, truth, IoU) with IoU >= threshold, best first, as GranDf's recall has them."""
    scores = [(iou(f, t), i, j) for i, f in enumerate(found) for j, t in enumerate(truth)]
    pairs, used_found, used_truth = [], set(), set()
    for score, i, j in sorted(scores, key=lambda entry: -entry[0]):
        if score >= threshold and i not in used_found and j not in used_truth:
            pairs.append((i, j, score))
            used_found.add(i)
            used_truth.add(j)
    return pairs


@dataclass
class PairedAccuracy:
    """AttrEval: a pair counts only if the yes question and the no question are both answered right."""

    pairs: int = 0
    right: int = 0
    questions_right: int = 0

    def add(self, answer_to_yes: str, answer_to_no: str) -> None:
        """The two answers, free text; what counts is the first word."""
        yes, no = says_yes(answer_to_yes) is True, says_yes(answer_to_no) is False
        self.pairs += 1
        self.right += yes and no
        self.questions_right += yes + no

    @property
    def paired(self) -> float:
        return self.right / self.pairs if self.pairs else float("nan")

    @property
    def single(self) -> float:
        return self.questions_right / (2 * self.pairs) if self.pairs else float("nan")


def says_yes(answer: str) -> bool | None:
    """True for an answer that begins with yes, False for no, None for anything else."""
    words = answer.strip().lower().replace(",", " ").replace(".", " ").split()
    return {"yes": True, "no": False}.get(words[0]) if words else None
