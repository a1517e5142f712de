"""What recipes do to tokens and masks, by sequence and in sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lira_engine.errors import LiraError

METRICS = ("ciou", "iou", "tokens")


@dataclass(frozen=True)
class SequenceScore:
    """A recipe's score on one sequence.

    Attributes:
        tokens: of the answer. agreed: of them those whose next-token argmax is that of fp32.
        mask_ious: of each shown mask with that of fp32; 1 if both are empty.
        intersections, unions: of each shown mask with the truth, pixels; where nothing is annotated, with
            the mask of fp32. reference_...: those of fp32.
        hidden_error: sum of squared differences of the hidden states to those of fp32, hidden_reference: sum
            of the squares of these. The two are equal if a hidden state is not finite.
    """

    key: str
    task: str
    tokens: int
    agreed: int
    mask_ious: tuple[float, ...]
    intersections: tuple[int, ...]
    unions: tuple[int, ...]
    reference_intersections: tuple[int, ...]
    reference_unions: tuple[int, ...]
    hidden_error: float
    hidden_reference: float


@dataclass(frozen=True)
class Score:
    """A recipe's score. `nonfinite`: STAGE.TENSOR of the first output that is not finite, if there is one."""

    sequences: tuple[SequenceScore, ...]
    nonfinite: str | None = None

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self.sequences)

    @property
    def agreed(self) -> int:
        return sum(one.agreed for one in self.sequences)

    @property
    def mask_ious(self) -> list[float]:
        return [value for one in self.sequences for value in one.mask_ious]

    @property
    def intersections(self) -> list[int]:
        return [value for one in self.sequences for value in one.intersections]

    @property
    def unions(self) -> list[int]:
        return [value for one in self.sequences for value in one.unions]

    @property
    def reference_intersections(self) -> list[int]:
        return [value for one in self.sequences for value in one.reference_intersections]

    @property
    def reference_unions(self) -> list[int]:
        return [value for one in self.sequences for value in one.reference_unions]

    @property
    def hidden_error(self) -> float:
        """Root mean square of the hidden states' error, relative to their own."""
        whole = sum(one.hidden_reference for one in self.sequences)
        error = sum(one.hidden_error for one in self.sequences)
        return float(np.sqrt(error / whole)) if whole else 0.0

    def metric(self, name: str) -> float:
        """Return "ciou" (summed intersections over summed unions), "iou" (mean IoU of the masks with those of
        fp32) or "tokens" (share of fp32's next tokens); 1.0 where there is nothing to compare, 0.0 if an
        output is not finite."""
        if name not in METRICS:
            raise LiraError(f"there is no metric {name!r}; expected {', '.join(METRICS)}")
        if self.nonfinite is not None:
            return 0.0
        if name == "ciou":
            return _share(sum(self.intersections), sum(self.unions))
        if name == "iou":
            return float(np.mean(self.mask_ious)) if self.mask_ious else 1.0
        return _share(self.agreed, self.tokens)

    def reference(self, name: str) -> float:
        """Return the metric of fp32 itself."""
        if name == "ciou":
            return _share(sum(self.reference_intersections), sum(self.reference_unions))
        return 1.0

    def of(self, numbers: Iterable[int]) -> Score:
        """Return the score on some of the sequences, by number, such as a resample."""
        return replace(self, sequences=tuple(self.sequences[number] for number in numbers))

    def as_dict(self) -> dict[str, Any]:
        """Return the score for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Score:
        """Return the score in what `as_dict` gave."""
        found = []
        for one in data["sequences"]:
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in one.items()}
            found.append(SequenceScore(**values))
        return cls(tuple(found), data["nonfinite"])


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
