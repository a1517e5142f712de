"""The contract of a builder, which lowers a stage, writes its engine and checks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lira_engine.engines.near_ties import Flip

Progress = Callable[[str, str], None]
"""Called with a stage's name and the phase that begins; the last phase is "done"."""


@dataclass(frozen=True)
class BuiltStage:
    """A built stage.

    Attributes:
        errors: of its outputs on the check vectors, if these were run. speedup: int8 over fp32, if both were
            timed. others: cores that other programs used meanwhile, if that is known. peak_mib: peak memory
            of the process that compiled it, if it had its own.
        kept_fp32: weights that do not fit into fp16. flips: near ties of the reference that came out
            otherwise on the check vectors. chosen: what the build made of options that leave it the choice,
            by their names. said: lines about these. wrong: what is wrong with its outputs, "" if nothing is.
    """

    precision: str
    errors: dict[str, float]
    seconds: float
    speedup: float | None = None
    others: float | None = None
    peak_mib: int | None = None
    kept_fp32: tuple[str, ...] = ()
    flips: tuple[Flip, ...] = ()
    chosen: dict[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    wrong: str = ""


class StageBuilder(Protocol):
    """Builds the stages of one bundle for one target and precision (engines.target.Target.builder)."""

    def stage(self, stage: str, folder: Path) -> BuiltStage:
        """Write a stage's engine into `folder`. Raises LiraError if it cannot be built."""
        ...


@runtime_checkable
class LowersFirst(Protocol):
    """A builder whose engines cannot run while they are built: the graphs of a recipe are judged before they
    are compiled."""

    def lower(self, stage: str, folder: Path) -> None:
        """Write the lowered graph STAGE.onnx into `folder`, where `StageBuilder.stage` then finds it."""
        ...
