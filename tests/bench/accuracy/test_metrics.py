"""Metrics, compared with cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lira_bench.accuracy import gcg
from lira_bench.accuracy.agreement import Agreement
from lira_bench.accuracy.text_answers import normalised, pope_says_yes, vqa_accuracy
from lira_bench.metrics import BinaryScore, average_precision, iou_matrix, matched, mean_matched_iou
from lira_runtime import rle


def rows(start: int, end: int) -> np.ndarray:
    """Return an 8 x 6 mask of whole rows."""
    mask = np.zeros((8, 6), dtype=bool)
    mask[start:end] = True
    return mask


def test_pairs_are_one_to_one_best_first() -> None:
    scores = iou_matrix([rows(0, 4), rows(0, 3)], [rows(0, 3), rows(5, 8)])
    assert scores.tolist() == [[0.75, 0.0], [1.0, 0.0]]
    assert matched(scores) == [(1, 0, 1.0)]  # the first mask, with 0.75, comes too late
    assert matched(np.zeros((0, 2))) == []
    assert matched(iou_matrix([rows(0, 2)], [rows(0, 4)])) == [(0, 0, 0.5)]  # just reached is reached


def test_miou_is_the_mean_over_matched_masks() -> None:
    scores = iou_matrix([rows(0, 4), rows(6, 8)], [rows(0, 2), rows(6, 8), rows(3, 5)])
    assert mean_matched_iou(scores) == pytest.approx((0.5 + 1.0) / 2)
    # A mask and a true one that are left over are no pair of IoU 0.
    assert mean_matched_iou(iou_matrix([rows(0, 4), rows(6, 8)], [rows(0, 2), rows(4, 5)])) == 0.5
    assert mean_matched_iou(iou_matrix([rows(0, 1)], [rows(4, 5)])) == 0.0
    assert mean_matched_iou(np.zeros((0, 1))) == 0.0


def encoded(*masks: np.ndarray) -> list[dict]:
    return [rle.encode(mask) for mask in masks]


def test_average_precision_counts_pairs_at_half() -> None:
    truth = [encoded(rows(0, 4)), encoded(rows(0, 4))]
    assert average_precision(truth, truth) == pytest.approx(1.0)
    assert average_precision([encoded(rows(0, 3)), encoded(rows(1, 4))], truth) == pytest.approx(1.0)  # 0.75
    assert average_precision([[], []], truth) == 0.0
    assert math.isnan(average_precision([encoded(rows(0, 1)), []], [[], []]))
    # One of two found, nothing wrong: precision 1 up to recall 0.5, which is 51 of COCO's 101 points.
    assert average_precision([encoded(rows(0, 4)), []], truth) == pytest.approx(51 / 101)
    # All masks have the same score, so a wrong one in the first image comes first: precision 1/2 there.
    wrong_first = [encoded(rows(6, 8)), encoded(rows(0, 4))]
    assert average_precision(wrong_first, truth) == pytest.approx(0.5 * 51 / 101)
    assert average_precision([encoded(rows(0, 3)), []], truth, threshold=0.8) == pytest.approx(0.0)


def test_average_precision_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    average_precision([encoded(rows(0, 4))], [encoded(rows(0, 4))])
    assert capsys.readouterr().out == ""


def test_binary_score_has_accuracy_precision_recall_and_f1() -> None:
    score = BinaryScore()
    for said, truth in ((True, True), (True, True), (True, False), (False, True), (False, False)):
        score.add(said, truth)
    assert score.count == 5
    assert score.accuracy == 3 / 5
    assert (score.precision, score.recall, score.f1) == (2 / 3, 2 / 3, 2 / 3)
    assert score.yes_share == 3 / 5
    assert math.isnan(BinaryScore().accuracy) and math.isnan(BinaryScore().f1)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", "yes"),
        ("The  red\nCar", "red car"),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("3.5", "3.5"),
        ("1,000", "1000"),
        ("black/white", "black white"),
        ("black, white", "black white"),
        ("Don't know", "dont know"),
        ("dont know", "dont know"),
        ("an apple and a pear", "apple and pear"),
    ],
)
def test_vqa_answers_are_normalised(answer: str, expected: str) -> None:
    assert normalised(answer) == expected


def test_vqa_accuracy_counts_annotators() -> None:
    assert vqa_accuracy("A cat.", ["cat"]) == 1.0
    assert vqa_accuracy("sofa", ["couch", "Sofa"]) == 1.0
    assert vqa_accuracy("chair", ["couch", "sofa"]) == 0.0
    assert vqa_accuracy("red", ["red", "blue", "blue"]) == pytest.approx(1 / 3)
    assert vqa_accuracy("blue", ["red", "blue", "blue"]) == pytest.approx(2 / 3)
    assert vqa_accuracy("red", ["red", "red", "red"]) == 1.0


@pytest.mark.parametrize(
    ("agreeing", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_vqa_accuracy_of_ten_annotators_leaves_one_out(agreeing: int, expected: float) -> None:
    truth = ["red"] * agreeing + ["blue"] * (10 - agreeing)
    assert vqa_accuracy("red", truth) == pytest.approx(expected)


def test_pope_takes_everything_but_a_no_for_a_yes() -> None:
    assert pope_says_yes("Yes") and pope_says_yes("") and pope_says_yes("A dog.")
    assert pope_says_yes("Yes. There is no cat.")  # the first sentence decides
    assert not pope_says_yes("No, there is none") and not pope_says_yes("It is not there")


def test_phrases_are_the_same_but_for_case_articles_and_punctuation() -> None:
    assert gcg.normalised("A red Star,") == gcg.normalised("the red star") == "red star"
    assert gcg.normalised("red stars") != gcg.normalised("red star")


def test_missing_tokens_and_masks_count_as_disagreement() -> None:
    agreement = Agreement()
    assert (agreement.share, agreement.mean_iou) == (1.0, 1.0)
    agreement.add([5, 6, 7, 8], [5, 9, 7], [rows(0, 3)], [rows(0, 4), rows(0, 1)])
    assert (agreement.tokens, agreement.agreed, agreement.ious) == (4, 2, [0.75, 0.0])
    assert (agreement.share, agreement.mean_iou) == (0.5, 0.375)
