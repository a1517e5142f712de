"""What a target's builder is: how a stage is lowered, written and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Progress = Callable[[str, str], None]
"""Called with a stage's name and what happens to it now; "done" at its end."""


@dataclass(frozen=True)
class BuiltStage:
    """What came of a stage.

    Attributes:
        errors: of its outputs on the check vectors, where it ran. speedup: of int8 against fp32, where both
            were tried. peak_mib: peak memory of the process that compiled it, where it had its own.
        kept_fp32: weights that do not fit into fp16.
    """

    precision: str
    errors: dict[str, float]
    seconds: float
    speedup: float | None = None
    peak_mib: int | None = None
    kept_fp32: tuple[str, ...] = ()


def gpu_precision(precision: str, stage: str) -> str:
    """What a stage comes out in: int4 is for the language model's weights, the other stages are fp16 then."""
    return "fp16" if precision == "int4" and stage != "llm" else precision


def stage_precisions(target: str, precision: str, stage: str) -> tuple[str, ...]:
    """What a stage may come out in; on the CPU the other stages of a quantized build have a choice."""
    if target == "cpu":
        return (precision,) if stage == "llm" or precision == "fp32" else ("fp32", "int8")
    return (gpu_precision(precision, stage),)


def gpu_bytes(precision: str, portable: Mapping[str, int]) -> list[int]:
    """About how large each stage's engine will be. See `StageBuilder.expected_bytes`."""
    shares = {"fp32": 2.2, "fp16": 1.1, "int4": 0.5}
    return [int(size * shares[gpu_precision(precision, stage)]) for stage, size in portable.items()]


class StageBuilder(Protocol):
    """Makes the engines of one bundle for one target and precision."""

    @property
    def recorded(self) -> dict[str, Any]:
        """The options that decide how engines come out: with others they are not up to date."""
        ...

    def machine(self) -> dict[str, str]:
        """Where the engines run: elsewhere they are foreign."""
        ...

    def tools(self) -> dict[str, str]:
        """Packages that take part, with their versions."""
        ...

    def expected_bytes(self, portable: Mapping[str, int]) -> int:
        """Room on the disk that the build needs; `portable`: bytes of the bundle's files of each stage, whose
        weights are halves mostly."""
        ...

    def stage(self, stage: str, folder: Path) -> BuiltStage:
        """Write a stage's engine into `folder`. Raises LiraError where it cannot be built."""
        ...
