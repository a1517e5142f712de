"""How far tokens and masks may fall below those of fp32, and whether they did."""

from __future__ import annotations

from lira_calib.choosing.budget import limits
from lira_calib.judging.agreement import Agreement
from lira_engine.engines.judgement import NAMES, Judgement, Loss
from lira_engine.engines.recipe import Budget

# Without a budget: what int4 weights of the language model alone cost lira-nano (docs/precisions.md: 0.35
# points of mask IoU, 0.2 points of tokens), with room for pictures that are harder than its scenes.
DEFAULT_LIMITS = {"iou": 0.01, "tokens": 0.02}
DEFAULT_TEXT = "none: mask IoU with fp32 -1%, tokens -2%"


def limits_of(budget: Budget | None) -> dict[str, float]:
    """Return how far each metric may fall: a budget for masks bounds tokens, too."""
    return DEFAULT_LIMITS if budget is None else limits(budget)


def budget_text(budget: Budget | None) -> str:
    return DEFAULT_TEXT if budget is None else budget.text


def verdict(agreement: Agreement, budget: Budget | None, ran: str) -> Judgement:
    """Return the judgement: refused if a metric fell by more than the budget allows."""
    losses = agreement.losses(limits_of(budget))
    return Judgement(
        ran=ran,
        pictures=agreement.pictures,
        questions=agreement.questions,
        metrics=agreement.metrics(),
        losses=losses,
        budget=budget_text(budget),
        refused="; ".join(_refusal(name, loss) for name, loss in losses.items() if not loss.accepted),
    )


def _refusal(name: str, loss: Loss) -> str:
    return f"{NAMES.get(name, name)} {loss.text()}"
