"""Decisions of the fp32 reference that rounding alone may turn over.

Which query owns a cell is a comparison of sums. Another order of summation, on another processor, moves each
sum a little, and where two were nearly equal the other one wins. Check vectors record for each query how far
its decision was from that (`margins` in bundle.check_vectors). A flip with a larger margin than rounding
explains is an error; what the others do to masks and tokens is for a judge (engines.judgement).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lira_engine.engines.precision import PRECISIONS

if TYPE_CHECKING:
    import numpy as np

    from lira_engine.bundle.check_vectors import CheckVectors

NOISE_MARGIN = 10
"""How much further than rounded inputs other roundings inside a stage move an output."""


@dataclass(frozen=True)
class Flip:
    """A decision that came out otherwise than recorded.

    Attributes:
        output: of the stage. element: its number in the output. found: what it is now. margin: the distance
            of the sums that decide it, relative to the largest of them. limit: up to which rounding explains
            the flip.
    """

    output: str
    element: int
    found: bool
    margin: float
    limit: float

    @property
    def near_tie(self) -> bool:
        return self.margin <= self.limit  # not for nan

    def text(self) -> str:
        """Return text such as "query_valid 17 is now true (margin 3.1e-06)"."""
        return f"{self.output} {self.element} is now {str(self.found).lower()} (margin {self.margin:.1e})"


def accepted_error(noise: float) -> float:
    """Return the tolerance of an fp32 output whose reference has a relative error of `noise` itself."""
    return max(PRECISIONS["fp32"].tolerance, NOISE_MARGIN * noise)


def near_ties(found: Mapping[str, np.ndarray], vectors: CheckVectors) -> tuple[Flip, ...]:
    """Return the flips in outputs whose margins the check vectors record, near ties or not.

    Each of two compared sums may be off by `accepted_error`: their distance by twice that.
    """
    flips = []
    for output, margins in vectors.margins.items():
        expected = vectors.outputs[output]
        if output not in found or found[output].shape != expected.shape:
            continue
        limit = 2 * accepted_error(vectors.noise.get(output, 0.0))
        turned = found[output].ravel() != expected.ravel()
        for element in turned.nonzero()[0].tolist():
            margin = float(margins.ravel()[element])
            flips.append(Flip(output, element, bool(found[output].ravel()[element]), margin, limit))
    return tuple(flips)


def flip_rows(flips: Mapping[str, Sequence[Flip]]) -> list[tuple[str, ...]]:
    """Return rows of a table about the near ties of each stage that came out otherwise."""
    rows: list[tuple[str, ...]] = []
    for stage, some in flips.items():
        largest = max(some, key=lambda flip: flip.margin)
        count = f"{len(some)} came out otherwise" if len(some) > 1 else "1 came out otherwise"
        near = f"margins up to {largest.margin:.1e}, at most {largest.limit:.0e} is rounding"
        rows.append(("near ties", f"{stage}: {count}; {near}"))
        rows += [("", flip.text()) for flip in some[:_SHOWN]]
        if len(some) > _SHOWN:
            rows.append(("", f"and {len(some) - _SHOWN} more"))
    return rows


_SHOWN = 5
