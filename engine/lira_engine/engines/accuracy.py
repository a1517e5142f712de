"""Compare an engine's outputs with the recorded ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lira_engine.engines.precision import PRECISIONS, precision_named
from lira_engine.errors import LiraError

_NOISE_MARGIN = 10  # other roundings inside a stage move an output further than rounded inputs do


class NotFinite(LiraError):
    """An output that must be finite is not."""


def check_outputs(
    what: str,
    precision: str,
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    noise: Mapping[str, float],
) -> dict[str, float]:
    """Return the relative error of each output: the largest for fp32, the RMS for other precisions; of
    booleans and integers, the share that differs if the precision accepts any.

    Args:
        what: start of the error message. found, expected: outputs by name; one that is not in `found` is
            left out. noise: of the expected outputs, see `accepted_error`.

    Raises LiraError if an error is above the tolerance of `precision`, an output is not finite although the
    expected one is, or too many booleans or integers differ (engines.precision). Of a precision that is
    judged by masks, only values that are not finite are refused (NotFinite).
    """
    accepted = precision_named(precision)
    errors = {}
    for output, array in expected.items():
        if output not in found:
            continue
        exact = not np.issubdtype(array.dtype, np.floating)
        if exact and accepted.flipped and found[output].shape == array.shape:
            error, limit, of = float((found[output] != array).mean()), accepted.flipped, "its elements"
        elif precision == "fp32" or exact:
            error, limit = relative_error(found[output], array), accepted_error(noise.get(output, 0.0))
            of = "the largest value"
        else:
            error, limit, of = rms_error(found[output], array), accepted.tolerance, "its RMS"
        if accepted.judged and not np.isfinite(error):
            raise NotFinite(f"{what} is wrong: output {output} is not finite, or not of the recorded shape")
        if not error <= limit:
            raise LiraError(
                f"{what} is wrong: output {output} differs from the recorded one by {error:.1e} of {of}, "
                f"at most {limit:.0e} is accepted"
            )
        errors[output] = error
    if not errors:
        raise LiraError(f"{what} gave none of the recorded outputs: {', '.join(expected)}")
    return errors


def accepted_error(noise: float) -> float:
    """Return the tolerance of an fp32 output whose reference has a relative error of `noise` itself."""
    return max(PRECISIONS["fp32"].tolerance, _NOISE_MARGIN * noise)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest absolute difference divided by the largest absolute expected value; infinity if
    shapes, dtypes, non-finite values, integers or booleans differ."""
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
    """Return the root mean square of the difference divided by that of the expected values; infinity if
    shapes or dtypes differ, or a found value is not finite."""
    if found.shape != expected.shape or found.dtype != expected.dtype or not np.isfinite(found).all():
        return float("inf")
    power = float(np.square(expected, dtype=np.float64).mean())
    error = float(np.square(found.astype(np.float64) - expected).mean())
    return float(np.sqrt(error / power)) if power else float(np.sqrt(error))
