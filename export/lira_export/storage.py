"""In which dtype a bundle keeps a stage's weights.

The arithmetic of a portable graph is fp32. Its matrices may be kept in 16 bits: each is then followed by a
Cast, which engines fold away or build on. Weights are rounded where they are read, so that the torch
reference and the check vectors know the same values as the graph. Vectors (norms, biases) stay fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lira_engine.bundle.manifest import STAGES
from lira_engine.errors import LiraError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Rounding to 11 or 8 bits moves a tensor by at most 2^-11 or 2^-8 of its largest value, unless it overflows
# or sinks below the smallest normal number.
_MOST_ERROR = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}

_ROWS = 4096  # at a time: a language model's tables are large


@dataclass
class Storage:
    """How one stage keeps its matrices.

    Attributes:
        kept: parameters that do not fit ``dtype`` and stay fp32, by name, with the reason.
    """

    EXACT: ClassVar[Storage]

    dtype: torch.dtype = torch.float32
    kept: dict[str, str] = field(default_factory=dict)

    def fit(self, name: str, tensor: Tensor) -> Tensor:
        """``tensor`` (fp32) with the values that are kept of it, fp32; written in its place."""
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
        """Whether ``tensor`` is a matrix that this dtype, and not fp32, represents exactly."""
        return (
            self.dtype != torch.float32
            and tensor.dim() >= 2
            and torch.equal(tensor.to(self.dtype).to(tensor.dtype), tensor)
        )


Storage.EXACT = Storage()


def storages(asked: Mapping[str, str], stored: str) -> dict[str, Storage]:
    """A :class:`Storage` per stage.

    Args:
        asked: stage, or "all", -> "fp16", "bf16" or "fp32"; a stage's own goes before "all".
        stored: dtype of the checkpoint, as torch calls it. What was trained in fp32 stays so unless asked;
            the rest is kept in fp16, which has three bits more than bf16 for what merging an adapter adds.

    Raises:
        LiraError: an unknown stage or dtype.
    """
    default = "fp32" if stored == "float32" else "fp16"
    for stage, dtype in asked.items():
        if stage not in (*STAGES, "all"):
            raise LiraError(f"--dtype: found stage {stage!r}, expected one of {', '.join(STAGES)}")
        if dtype not in DTYPES:
            raise LiraError(f"--dtype: found {dtype!r}, expected one of {', '.join(DTYPES)}")
    chosen = {stage: asked.get(stage, asked.get("all", default)) for stage in STAGES}
    return {stage: Storage(DTYPES[dtype]) for stage, dtype in chosen.items()}
