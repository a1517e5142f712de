"""What an evaluation has to reach before a lowering counts as good: `--require NAME=VALUE`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lira_engine.errors import LiraError

Figures = Mapping[str, float | int | None]
"""Metrics by name, and token_agreement and mask_iou of a comparison; None where there was nothing to rate."""


LOWER_IS_BETTER = frozenset({"chair_i", "chair_s"})
"""Figures that have to be at most what is required; all others at least."""


def parse(texts: Sequence[str]) -> dict[str, float]:
    """Each NAME=VALUE. Raises LiraError for anything else, and for a name that is there twice."""
    required: dict[str, float] = {}
    for text in texts:
        name, _, value = text.rpartition("=")  # names of kinds may hold one
        try:
            bound = float(value)
        except ValueError:
            bound = math.nan
        if not name or not math.isfinite(bound):
            raise LiraError(f"--require {text}: expected NAME=VALUE, such as mask_iou=0.98")
        if name in required:
            raise LiraError(f"--require {text}: {name} is required twice, expected once")
        required[name] = bound
    return required


def check(required: Mapping[str, float], figures: Figures) -> None:
    """Raises LiraError where a figure is worse than required, was not measured, or does not exist."""
    for name in required:
        if name not in figures:
            raise LiraError(f"--require {name}: there is no such figure; there are: {', '.join(figures)}")
    worse = []
    for name, bound in required.items():
        found, lower = figures[name], name in LOWER_IS_BETTER
        if found is None or math.isnan(found):
            worse.append(f"{name} is not measured, required {bound:g}")
        elif found > bound if lower else found < bound:
            worse.append(f"{name} is {found:g}, required {'at most ' if lower else ''}{bound:g}")
    if worse:
        raise LiraError(f"not good enough: {'; '.join(worse)}")
