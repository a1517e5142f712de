"""Compare an engine's outputs with the recorded ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lira_engine.bundle.check_vectors import CheckVectors
from lira_engine.engines.near_ties import Flip, accepted_error, near_ties
from lira_engine.engines.precision import precision_named
from lira_engine.errors import LiraError

_NO_MARGINS = "; bundles that are exported again record margins, by which near ties are told"


class WrongOutput(LiraError):
    """An output is not the recorded one."""


class NotFinite(WrongOutput):
    """An output that must be finite is not."""


@dataclass(frozen=True)
class Checked:
    """Outputs that are right. errors: see `check_outputs`. flips: near ties that came out otherwise, which a
    judge looks at (engines.judgement)."""

    errors: dict[str, float]
    flips: tuple[Flip, ...] = ()


def check_stage_outputs(
    what: str, precision: str, found: Mapping[str, np.ndarray], vectors: CheckVectors
) -> Checked:
    """Compare a stage's outputs on its check vectors with the recorded ones. In fp32, booleans may differ
    where the recorded decision was a near tie. Raises LiraError as `check_outputs` does."""
    flips = near_ties(found, vectors) if precision == "fp32" else ()
    return Checked(check_outputs(what, precision, found, vectors.outputs, vectors.noise, flips), flips)


def check_outputs(
    what: str,
    precision: str,
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    noise: Mapping[str, float],
    flips: Sequence[Flip] = (),
) -> dict[str, float]:
    """Return the relative error of each output: the largest for fp32, the RMS for other precisions; of
    booleans and integers, the share that differs if the precision accepts any.

    Args:
        what: start of the error message. found, expected: outputs by name; one that is not in `found` is
            left out. noise: of the expected outputs, see `accepted_error`. flips: of booleans, with their
            margins, where these are known.

    Raises LiraError if an error is above the tolerance of `precision`, an output is not finite although the
    expected one is, or too many booleans or integers differ (engines.precision): any that was no near tie,
    if `flips` tells. Of a precision that is judged by masks, only values that are not finite are refused
    (NotFinite).
    """
    accepted = precision_named(precision)
    errors = {}
    for output, array in expected.items():
        if output not in found:
            continue
        turned = [flip for flip in flips if flip.output == output]
        if not np.issubdtype(array.dtype, np.floating):
            error = differing_share(found[output], array)
            limit, of = 1.0 if turned else accepted.flipped, "its elements"
        elif precision == "fp32":
            error, limit = relative_error(found[output], array), accepted_error(noise.get(output, 0.0))
            of = "the largest value"
        else:
            error, limit, of = rms_error(found[output], array), accepted.tolerance, "its RMS"
        if accepted.judged and not np.isfinite(error):
            raise NotFinite(f"{what} is wrong: output {output} is not finite, or not of the recorded shape")
        if not error <= limit:
            unknown = precision == "fp32" and of == "its elements" and np.isfinite(error)
            raise WrongOutput(
                f"{what} is wrong: output {output} differs from the recorded one by {error:.1e} of {of}, "
                f"at most {limit:.0e} is accepted{_NO_MARGINS if unknown else ''}"
            )
        _refuse_far(what, turned)
        errors[output] = error
    if not errors:
        raise LiraError(f"{what} gave none of the recorded outputs: {', '.join(expected)}")
    return errors


def _refuse_far(what: str, flips: Sequence[Flip]) -> None:
    """Raises LiraError, which names the flip with the largest margin, if that is no near tie."""
    far = sorted((flip for flip in flips if not flip.near_tie), key=lambda flip: flip.margin)
    if far:
        others = f"; {len(far)} flips are no near ties" if len(far) > 1 else ""
        raise WrongOutput(
            f"{what} is wrong: output {far[-1].text()}, the recorded one is not, and rounding explains "
            f"margins of at most {far[-1].limit:.0e} of the largest sum{others}"
        )


def differing_share(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the share of elements that differ; infinity if shapes or dtypes do."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    return float((found != expected).mean()) if expected.size else 0.0


def worst(*found: Checked) -> Checked:
    """Return the largest of the errors of each output, and all flips."""
    errors: dict[str, float] = {}
    for one in found:
        for output, error in one.errors.items():
            errors[output] = max(error, errors.get(output, 0.0))
    return Checked(errors, tuple(flip for one in found for flip in one.flips))


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
