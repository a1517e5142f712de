"""Two engines on the same data, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lira_bench.accuracy.agreement import Agreement
from lira_bench.accuracy.items import Evaluation, rounded
from lira_bench.accuracy.worker import EngineChoice
from lira_engine.bundle.bundle import Bundle
from lira_engine.errors import LiraError


def other_engines(text: str, this: EngineChoice) -> tuple[str, EngineChoice]:
    """What `--compare` means, with a name for it: engines of the same bundle by their folder's name, such as
    "cpu-int4", or "portable"; or another bundle's folder, and its engines for the same target and precision.
    """
    engines = this.bundle / "engines"
    built = sorted(path.name for path in engines.iterdir() if path.is_dir()) if engines.is_dir() else []
    if text == "portable":
        other = EngineChoice(this.bundle, "portable", "fp32")
    elif text in built:
        target, _, precision = text.rpartition("-")
        other = EngineChoice(this.bundle, target, precision)
    elif Path(text).is_dir():
        folder = Path(text).resolve()
        text, other = folder.name, EngineChoice(folder, this.target, this.precision)
    else:
        choices = ", ".join([*built, "portable"])
        raise LiraError(
            f"--compare {text}: there is no such bundle, and {this.bundle} has the engines {choices}"
        )
    if other == this:
        raise LiraError(f"--compare {text} names the very engines that are evaluated")
    Bundle.open(other.bundle)
    return text, other


def comparison(this: Evaluation, other: Evaluation) -> dict[str, Any]:
    """Metrics of both with their difference (other minus this), and how far `other`, reading the answers of
    `this`, agrees with it: the share of tokens it would have chosen, too, and the mean IoU of the masks."""
    metrics = {}
    for name in {**this.metrics, **other.metrics}:
        was, now = this.metrics.get(name), other.metrics.get(name)
        delta = None if was is None or now is None else now - was
        delta = rounded(delta) if isinstance(delta, float) else delta
        metrics[name] = {"this": was, "other": now, "delta": delta}
    agreement = agreement_of([other])
    return {
        "token_agreement": rounded(agreement.share) if agreement.tokens else None,
        "tokens": agreement.tokens,
        "mask_iou": rounded(agreement.mean_iou) if agreement.ious else None,
        "masks": len(agreement.ious),
        "metrics": metrics,
    }


def agreement_of(others: Sequence[Evaluation]) -> Agreement:
    """How far engines agreed with those that they were compared with, over all their evaluations together."""
    agreement = Agreement()
    for evaluation in others:
        for _, record in evaluation.scored:
            found = record.get("agreement", {"tokens": 0, "agreed": 0, "mask_ious": []})
            agreement.tokens += found["tokens"]
            agreement.agreed += found["agreed"]
            agreement.ious += found["mask_ious"]
    return agreement
