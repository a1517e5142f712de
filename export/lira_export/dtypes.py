"""In which dtype each stage's weights are kept."""

from __future__ import annotations

from collections.abc import Mapping

from lira_engine.bundle.manifest import STAGES
from lira_engine.errors import LiraError

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


def stage_dtypes(asked: Mapping[str, str], stored: str) -> dict[str, str]:
    """Return stage -> "fp16", "bf16" or "fp32".

    Args:
        asked: stage, or "all", -> dtype; a stage's own goes before "all".
        stored: dtype of the checkpoint, as torch calls it. A checkpoint in fp32 stays so unless asked; others
            become fp16, whose three bits more than bf16 keep what merging an adapter adds.

    Raises:
        LiraError: an unknown stage or dtype.
    """
    default = "fp32" if stored == "float32" else "fp16"
    for stage, dtype in asked.items():
        if stage not in (*STAGES, "all"):
            raise LiraError(f"--dtype: found stage {stage!r}, expected one of {', '.join(STAGES)}")
        if dtype not in BYTES:
            raise LiraError(f"--dtype: found {dtype!r}, expected one of {', '.join(BYTES)}")
    return {stage: asked.get(stage, asked.get("all", default)) for stage in STAGES}
