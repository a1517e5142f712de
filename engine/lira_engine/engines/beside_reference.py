"""Compare any tensor of a stage with that of a reference that has the same weights."""

from __future__ import annotations

import numpy as np

from lira_engine.engines.precision import PRECISIONS

_SINGLE = 10
"""A single value may be off by so many times what the RMS may be."""
_MASKED = -16000.0
"""Scores of masked keys are lower: half of the lowest fp16 number, or of the lowest fp32 one."""


def reference_limit(precision: str) -> float:
    """Return the relative error that is accepted beside a reference with the same weights."""
    return PRECISIONS["fp32" if precision == "fp32" else "fp16"].tolerance


def beside_reference(precision: str, found: np.ndarray, expected: np.ndarray) -> float:
    """Return how far any tensor of a stage is from ONNX Runtime's, in accepted errors: above 1 it is wrong.

    Both sides have the same weights. fp32: the largest error, of 1e-4 of the largest value; others: the RMS,
    of 2 %, and single values, of 20 % of the largest one. Of integers and booleans fp32 accepts no other
    element, the others 2 % of them. Infinities, values that are no number and scores of masked keys must be
    the same, and count no further: they would hide all others. What is below the least number that a
    device keeps is zero.
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    accepted = PRECISIONS["fp32" if precision == "fp32" else "fp16"]
    if not np.issubdtype(expected.dtype, np.floating):
        differing = float((found != expected).mean()) if expected.size else 0.0
        return differing / accepted.flipped if accepted.flipped else (np.inf if differing else 0.0)
    wide, wanted = found.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        masked = (wanted <= _MASKED) & (wide <= _MASKED) & (np.abs(wide / wanted - 1) <= accepted.tolerance)
    apart = masked | (~np.isfinite(wanted) & ((wide == wanted) | (np.isnan(wide) & np.isnan(wanted))))
    wide, wanted = wide[~apart], wanted[~apart]
    with np.errstate(invalid="ignore"):
        error = wide - wanted
    if not error.size:
        return 0.0
    if not np.isfinite(error).all():
        return float("inf")
    info = np.finfo(expected.dtype)  # devices flush fp32 numbers below the smallest normal one
    step = info.smallest_subnormal if expected.dtype == np.float16 else info.tiny
    tiny = float(step) / accepted.tolerance
    largest = float(np.abs(error).max()) / max(float(np.abs(wanted).max()), tiny)
    if precision == "fp32":
        return largest / accepted.tolerance
    rms = float(np.sqrt(np.square(error).mean() / max(np.square(wanted).mean(), tiny**2)))
    return max(rms, largest / _SINGLE) / accepted.tolerance
