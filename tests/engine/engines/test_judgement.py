"""How a judgement is told: losses in points, and what is more than the budget."""

from __future__ import annotations

from lira_engine.engines.judgement import Judgement, Loss


def test_losses_are_told_in_points_of_a_hundred() -> None:
    limited = Loss(0.0031, -0.001, 0.008, limit=0.005)
    assert limited.text() == "loses 0.31 points (95 %: -0.10 to 0.80), at most 0.50"
    assert Loss(-0.00001, 0.0, 0.25).text() == "loses 0.00 points (95 %: 0.00 to 25.00)"


def test_a_loss_of_just_the_limit_is_accepted() -> None:
    found = [Loss(loss, 0, 1, limit=0.01).accepted for loss in (0.0, 0.01, 0.011, float("nan"))]
    assert found == [True, True, False, False] and Loss(0.9, 0, 1).accepted


def test_a_judgement_tells_both_sides() -> None:
    losses = {"iou": Loss(0.02, 0.01, 0.03, limit=0.01)}
    metrics = {"iou": 0.97, "fp32 iou": 0.99}
    one = Judgement("engines", 1, 2, metrics, losses, "small", "it loses too much", forced=True)
    assert one.rows() == [
        ("judged", "engines on 2 held-out questions about 1 picture"),
        ("budget", "small"),
        (
            "mask IoU with fp32",
            "97.00 %, fp32 99.00 %: loses 2.00 points (95 %: 1.00 to 3.00), at most 1.00",
        ),
        ("refused", "it loses too much; kept by --force"),
    ]
    assert Judgement(not_judged="no judge").rows() == [("masks", "not judged: no judge")]
