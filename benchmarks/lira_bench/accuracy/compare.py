"""Compare the evaluations of two engines on the same data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lira_bench.accuracy.agreement import Agreement
from lira_bench.accuracy.items import Evaluation, rounded
from lira_bench.accuracy.worker import EngineChoice
from lira_engine.bundle.bundle import Bundle
from lira_engine.errors import LiraError


def other_engines(text: str, this: EngineChoice) -> tuple[str, EngineChoice]:
    """Return the engines that `--compare` names, and a name for them.

    `text` is the folder of other engines of the same bundle, such as "cpu-int4", or "portable", or the folder
    of another bundle, whose engines for the same target and precision are meant. Raises LiraError for others.
    """
    engines = this.bundle / "engines"
    built = sorted(path.name for path in engines.iterdir() if path.is_dir()) if engines.is_dir() else []
    if text == "portable":
        other = EngineChoice(this.bundle, "portable", "fp32")
    elif text in built:
        target, _, precision = text.rpartition("-")
        other = EngineChoice(this.bundle, target, precision, this.driver if target == this.target else "auto")
    elif Path(text).is_dir():
        folder = Path(text).resolve()
        text, other = folder.name, replace(this, bundle=folder)
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
    """Return the metrics of both, their difference (other minus this), and the agreement of `other` when it
    reads the answers of `this`: the share of equal tokens and the mean IoU of the masks."""
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
    """Return the agreement of engines with the compared ones, summed over their evaluations."""
    agreement = Agreement()
    for evaluation in others:
        for _, record in evaluation.scored:
            found = record.get("agreement", {"tokens": 0, "agreed": 0, "mask_ious": []})
            agreement.tokens += found["tokens"]
            agreement.agreed += found["agreed"]
            agreement.ious += found["mask_ious"]
    return agreement
