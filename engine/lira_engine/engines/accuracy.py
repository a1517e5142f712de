"""How far an engine's outputs may be from the recorded ones."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lira_engine.errors import LiraError

# fp32 sums in another order move an output by about 1e-6 of its largest value per layer; a wrong axis, a lost
# bias or an attention mask off by one by more than 1e-2.
FP32_TOLERANCE = 1e-4
_NOISE_MARGIN = 10  # between what rounded inputs and what other roundings inside move an output by
# Weights in 8 (4) bits miss 0.6 % (9 %) of a product each, which adds up over a model's layers. What is
# packed, scaled or ordered wrongly has little to do with the expected output: its error is 100 % and more.
# fp16 rounds each factor by 0.03 %: lira-nano's stages are off by up to 0.02 %, LIRA-2B's by 0.06 % with sums
# in fp32 (docs/true-size.md); kernels that sum in fp16 may be off by more. One that is wrong at some
# positions is off by more than 2 %.
RMS_TOLERANCE = {"fp16": 0.02, "int8": 0.15, "int4": 0.6}
# Which query owns a cell is decided by comparing sums: of those that are close, fp16 turns some over.
FLIPPED_TOLERANCE = {"fp16": 0.02}


def check_outputs(
    what: str,
    precision: str,
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    noise: Mapping[str, float],
) -> dict[str, float]:
    """The error of each output: fp32 by its largest deviation, other engines by their root mean square.

    Raises LiraError, which begins with `what`, where one is above what is accepted, is not finite where it
    should be, or differs in an output of booleans or integers: at all, or in fp16 in too many places.
    """
    errors = {}
    for output, array in expected.items():
        if output not in found:
            continue
        exact = not np.issubdtype(array.dtype, np.floating)
        if exact and precision in FLIPPED_TOLERANCE and found[output].shape == array.shape:
            error, limit = float((found[output] != array).mean()), FLIPPED_TOLERANCE[precision]
        elif precision == "fp32" or exact:
            error, limit = relative_error(found[output], array), accepted_error(noise.get(output, 0.0))
        else:
            error, limit = rms_error(found[output], array), RMS_TOLERANCE[precision]
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
    return max(FP32_TOLERANCE, _NOISE_MARGIN * noise)


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
