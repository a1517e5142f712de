"""Keep a stage's weights in 16 bits.

A portable graph computes in fp32. Its matrices may be kept in 16 bits: a Cast follows each, which engines
fold away or build on. Weights are rounded when they are read, so that torch reference, check vectors and
graph have the same values. Vectors (norms, biases) stay fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

_TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Rounding to 11 or 8 bits moves a value by at most 2^-11 or 2^-8 of the tensor's largest, unless it overflows
# or is smaller than the smallest normal number.
_MOST_ERROR = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}

_ROWS = 4096  # at a time: a language model's tables are large


@dataclass
class Storage:
    """How one stage keeps its matrices.

    Attributes:
        kept: name -> reason, of the parameters that do not fit ``dtype`` and stay fp32.
    """

    EXACT: ClassVar[Storage]

    dtype: torch.dtype = torch.float32
    kept: dict[str, str] = field(default_factory=dict)

    def fit(self, name: str, tensor: Tensor) -> Tensor:
        """Round ``tensor`` (fp32) in place to the values that ``dtype`` keeps of it; return it."""
        if self.dtype == torch.float32 or tensor.dim() < 2:
            return tensor
        largest, error = 0.0, 0.0
        for part in tensor.split(_ROWS):
            moved = (part.to(self.dtype).float() - part).abs().max()
            largest = max(largest, float(part.abs().max()))
            error = max(error, float(moved.nan_to_num(nan=float("inf"))))
        if error <= _MOST_ERROR[self.dtype] * largest < float("inf"):
            for part in tensor.split(_ROWS):
                part.copy_(part.to(self.dtype))
            return tensor
        self.kept[name] = f"largest value {largest:.3g}, rounding moves it by {error:.1e}"
        return tensor

    def holds(self, tensor: Tensor) -> bool:
        """Return whether ``tensor`` is a matrix, and ``dtype`` has 16 bits and all of its values."""
        return (
            self.dtype != torch.float32
            and tensor.dim() >= 2
            and torch.equal(tensor.to(self.dtype).to(tensor.dtype), tensor)
        )


Storage.EXACT = Storage()


def storages(dtypes: Mapping[str, str]) -> dict[str, Storage]:
    """Return a :class:`Storage` for each stage and its dtype (:func:`lira_export.dtypes.stage_dtypes`)."""
    return {stage: Storage(_TORCH_DTYPES[dtype]) for stage, dtype in dtypes.items()}
