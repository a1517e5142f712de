"""Accuracy metrics of the field, as plain functions of masks and answers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def intersection_and_union(found: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """Return how many pixels are in both and in either of two masks, bool [H, W].

    Raises ValueError if the shapes differ.
    """
    if found.shape != truth.shape:
        raise ValueError(f"masks of different size: {found.shape} and {truth.shape}")
    return int(np.count_nonzero(found & truth)), int(np.count_nonzero(found | truth))


def iou(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the intersection over union; 1.0 if both masks are empty."""
    intersection, union = intersection_and_union(found, truth)
    return intersection / union if union else 1.0


@dataclass
class SegmentationScore:
    """cIoU (summed intersections over summed unions) and gIoU (mean IoU), as RefCOCO papers report them."""

    intersections: list[int] = field(default_factory=list)
    unions: list[int] = field(default_factory=list)

    def add(self, found: np.ndarray | None, truth: np.ndarray) -> None:
        """Add one expression; ``found`` is None if the model made no mask."""
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


def iou_matrix(found: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> np.ndarray:
    """Return the IoU of each found mask with each true mask, float64 [len(found), len(truth)]."""
    scores = [[iou(f, t) for t in truth] for f in found]
    return np.array(scores, dtype=np.float64).reshape(len(found), len(truth))


def matched(scores: np.ndarray, threshold: float = 0.5) -> list[tuple[int, int, float]]:
    """Return one-to-one pairs (row, column, score) with score >= threshold, greedily, best score first."""
    order = sorted(np.ndindex(scores.shape), key=lambda pair: -scores[pair])
    pairs, rows, columns = [], set(), set()
    for i, j in order:
        if scores[i, j] >= threshold and i not in rows and j not in columns:
            pairs.append((i, j, float(scores[i, j])))
            rows.add(i)
            columns.add(j)
    return pairs


def matched_pairs(
    found: Sequence[np.ndarray], truth: Sequence[np.ndarray], threshold: float = 0.5
) -> list[tuple[int, int, float]]:
    """Return one-to-one pairs (found, truth, IoU) with IoU >= threshold, best first, as GranDf's recall."""
    return matched(iou_matrix(found, truth), threshold)


def mean_matched_iou(scores: np.ndarray) -> float:
    """Return GLaMM's mIoU of one image: the mean IoU of one-to-one pairs with IoU > 0; 0.0 without pairs.

    Unmatched masks do not lower it; they lower recall and AP50.
    """
    found = [score for _, _, score in matched(scores, 0.0) if score > 0]
    return float(np.mean(found)) if found else 0.0


def average_precision(
    found: Sequence[Sequence[Mapping[str, Any]]],
    truth: Sequence[Sequence[Mapping[str, Any]]],
    threshold: float = 0.5,
) -> float:
    """Return COCO's AP of masks at one IoU threshold, by pycocotools; `found[i]`, `truth[i]` are of image i.

    Masks are COCO run-length encodings. All have one category and score 1.0, as in GLaMM's evaluation: a
    grounded answer does not rank its masks. At most 100 masks per image count. nan if there is no true mask.
    """
    if not any(truth):
        return float("nan")
    if not any(found):
        return 0.0
    sizes = [next((mask["size"] for mask in (*t, *f)), (1, 1)) for t, f in zip(truth, found, strict=True)]
    images = [{"id": index, "height": h, "width": w} for index, (h, w) in enumerate(sizes)]
    wanted = [
        {"id": number, "image_id": index, "category_id": 1, "iscrowd": 0, "segmentation": mask}
        | {"area": int(coco_mask.area(mask)), "bbox": coco_mask.toBbox(mask).tolist()}
        for number, (index, mask) in enumerate(_numbered(truth), 1)  # id 0 would mean "no match"
    ]
    results = [
        {"image_id": index, "category_id": 1, "segmentation": mask, "score": 1.0}
        for index, mask in _numbered(found)
    ]
    with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        reference = COCO()
        reference.dataset = {"images": images, "annotations": wanted, "categories": [{"id": 1}]}
        reference.createIndex()
        evaluation = COCOeval(reference, reference.loadRes(results), "segm")
        evaluation.params.iouThrs = np.array([threshold])
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.params.maxDets = evaluation.params.maxDets[-1:]
        evaluation.evaluate()
        evaluation.accumulate()
    return float(evaluation.eval["precision"].mean())


def _numbered(masks: Sequence[Sequence[Mapping[str, Any]]]) -> list[tuple[int, dict[str, Any]]]:
    return [(index, dict(mask)) for index, of_image in enumerate(masks) for mask in of_image]


@dataclass
class BinaryScore:
    """POPE: accuracy, and precision, recall and F1 of "yes"."""

    true_yes: int = 0
    false_yes: int = 0
    true_no: int = 0
    false_no: int = 0

    def add(self, said: bool, truth: bool) -> None:
        """True stands for yes."""
        self.true_yes += said and truth
        self.false_yes += said and not truth
        self.true_no += not said and not truth
        self.false_no += not said and truth

    @property
    def count(self) -> int:
        return self.true_yes + self.false_yes + self.true_no + self.false_no

    @property
    def accuracy(self) -> float:
        return _ratio(self.true_yes + self.true_no, self.count)

    @property
    def precision(self) -> float:
        return _ratio(self.true_yes, self.true_yes + self.false_yes)

    @property
    def recall(self) -> float:
        return _ratio(self.true_yes, self.true_yes + self.false_no)

    @property
    def f1(self) -> float:
        return _ratio(2 * self.true_yes, 2 * self.true_yes + self.false_yes + self.false_no)

    @property
    def yes_share(self) -> float:
        return _ratio(self.true_yes + self.false_yes, self.count)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


@dataclass
class PairedAccuracy:
    """AttrEval: a pair counts if both its yes question and its no question are answered correctly."""

    pairs: int = 0
    right: int = 0
    questions_right: int = 0

    def add(self, answer_to_yes: str, answer_to_no: str) -> None:
        """Add the two answers, free text of which the first word counts."""
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
    """Return True if the answer begins with yes, False if with no, else None."""
    words = answer.strip().lower().replace(",", " ").replace(".", " ").split()
    return {"yes": True, "no": False}.get(words[0]) if words else None
