"""The bounds that a figure must reach: `--require NAME=VALUE`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lira_engine.errors import LiraError

Figures = Mapping[str, float | int | None]
"""Metrics by name, and token_agreement and mask_iou of a comparison; None if there was nothing to rate."""

LOWER_IS_BETTER = frozenset({"chair_i", "chair_s"})
"""Figures that must be at most the bound; all others must be at least it."""


def parse(texts: Sequence[str]) -> dict[str, float]:
    """Return the bounds of texts NAME=VALUE. Raises LiraError for other texts, and for a repeated name."""
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


def judged(required: Mapping[str, float], figures: Figures) -> list[dict[str, Any]]:
    """Return {name, required, found, passed} for each bound; what does not exist or is a nan did not pass."""
    return [
        {"name": name, "required": bound, "found": found, "passed": _passed(name, bound, found)}
        for name, bound in required.items()
        for found in [_number(figures.get(name))]
    ]


def check(required: Mapping[str, float], figures: Figures) -> None:
    """Raise LiraError if a figure is worse than required, was not measured, or does not exist."""
    for name in required:
        if name not in figures:
            raise LiraError(f"--require {name}: there is no such figure; there are: {', '.join(figures)}")
    worse = []
    for one in judged(required, figures):
        name, bound, found = one["name"], one["required"], one["found"]
        if found is None:
            worse.append(f"{name} is not measured, required {bound:g}")
        elif not one["passed"]:
            most = "at most " if name in LOWER_IS_BETTER else ""
            worse.append(f"{name} is {found:g}, required {most}{bound:g}")
    if worse:
        raise LiraError(f"not good enough: {'; '.join(worse)}")


def _number(found: float | int | None) -> float | int | None:
    return None if found is None or math.isnan(found) else found


def _passed(name: str, bound: float, found: float | int | None) -> bool:
    if found is None:
        return False
    return found <= bound if name in LOWER_IS_BETTER else found >= bound
