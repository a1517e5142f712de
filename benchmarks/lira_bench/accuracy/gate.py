"""What an evaluation has to reach before a lowering counts as good: `--require NAME=VALUE`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lira_engine.errors import LiraError

Figures = Mapping[str, float | int | None]
"""Metrics by name, and token_agreement and mask_iou of a comparison; None where there was nothing to rate."""


def parse(texts: Sequence[str]) -> dict[str, float]:
    """Each NAME=VALUE. Raises LiraError for anything else."""
    required = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            required[name] = float(value)
        except ValueError:
            required[name] = math.nan
        if not name or not math.isfinite(required[name]):
            raise LiraError(f"--require {text}: expected NAME=VALUE, such as mask_iou=0.98")
    return required


def check(required: Mapping[str, float], figures: Figures) -> None:
    """Raises LiraError where a figure is lower than required, was not measured, or does not exist."""
    for name in required:
        if name not in figures:
            raise LiraError(f"--require {name}: there is no such figure; there are: {', '.join(figures)}")
    low = []
    for name, least in required.items():
        found = figures[name]
        if found is None or found < least:
            low.append(f"{name} is {'not measured' if found is None else f'{found:g}'}, required {least:g}")
    if low:
        raise LiraError(f"not good enough: {'; '.join(low)}")
