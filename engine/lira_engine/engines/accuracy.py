"""How far an engine's outputs may be from the recorded ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lira_engine.engines.precision import PRECISIONS, precision_named
from lira_engine.errors import LiraError

_NOISE_MARGIN = 10  # between what rounded inputs and what other roundings inside move an output by


def check_outputs(
    what: str,
    precision: str,
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    noise: Mapping[str, float],
) -> dict[str, float]:
    """The error of each output: of fp32 its largest deviation, of other precisions the root mean square.

    Args:
        what: how the error message begins. found, expected: outputs by name; those that were not found are
            left out. noise: of the expected ones, see `accepted_error`.

    Raises LiraError if an error is above the tolerance of `precision`, an output is not finite where it
    should be, or too many booleans or integers differ (engines.precision).
    """
    accepted = precision_named(precision)
    errors = {}
    for output, array in expected.items():
        if output not in found:
            continue
        exact = not np.issubdtype(array.dtype, np.floating)
        if exact and accepted.flipped and found[output].shape == array.shape:
            error, limit = float((found[output] != array).mean()), accepted.flipped
        elif precision == "fp32" or exact:
            error, limit = relative_error(found[output], array), accepted_error(noise.get(output, 0.0))
        else:
            error, limit = rms_error(found[output], array), accepted.tolerance
        if not error <= limit:
            raise LiraError(
                f"{what} is wrong: output {output} differs from the recorded one by {error:.1e} of "
                f"{'its' if precision != 'fp32' else 'the largest'} value, at most {limit:.0e} is accepted"
            )
        errors[output] = error
    if not errors:
        raise LiraError(f"{what} gave none of the recorded outputs: {', '.join(expected)}")
    return errors


def accepted_error(noise: float) -> float:
    """The largest relative error of an fp32 output that the reference knows no better than to `noise`."""
    return max(PRECISIONS["fp32"].tolerance, _NOISE_MARGIN * noise)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference divided by the largest absolute expected value; infinite where shapes,
    dtypes, non-finite values or anything that is not floating point differ."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if not np.issubdtype(expected.dtype, np.floating):
        return 0.0 if np.array_equal(found, expected) else float("inf")
    finite = np.isfinite(expected)
    if (
        not np.array_equal(found[~finite], expected[~finite], equal_nan=True)
        or not np.isfinite(found[finite]).all()
    ):
        return float("inf")
    if not finite.any():
        return 0.0
    scale = float(np.abs(expected[finite]).max())
    error = float(np.abs(found[finite].astype(np.float64) - expected[finite]).max())
    return error / scale if scale else error


def rms_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference divided by that of the expected values; infinite where shapes or
    dtypes differ, or anything is not finite."""
    if found.shape != expected.shape or found.dtype != expected.dtype or not np.isfinite(found).all():
        return float("inf")
    power = float(np.square(expected, dtype=np.float64).mean())
    error = float(np.square(found.astype(np.float64) - expected).mean())
    return float(np.sqrt(error / power)) if power else float(np.sqrt(error))
