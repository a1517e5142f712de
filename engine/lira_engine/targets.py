"""The table of targets. A new target gets a line here."""

from __future__ import annotations

from lira_engine.engines.target import Target
from lira_engine.errors import LiraError
from lira_engine.ort.target import NOT_BUILT, CpuTarget, CudaTarget, PortableTarget
from lira_engine.trt.target import RtxTarget, TensorRtTarget

PORTABLE = PortableTarget()
"""Runs a bundle's graphs as they are, without a build."""
TARGETS: dict[str, Target] = {
    one.name: one for one in (CpuTarget(), CudaTarget(), TensorRtTarget(), RtxTarget())
}
"""The targets by name, in the order of help texts."""


def target_named(name: str) -> Target:
    """Return a target that engines are built for. Raises LiraError if there is none of that name."""
    if name == PORTABLE.name:
        raise LiraError(NOT_BUILT)
    if name not in TARGETS:
        raise LiraError(
            f"there is no target {name!r}; expected {', '.join(TARGETS)}, or portable to run the graphs as "
            "they are"
        )
    return TARGETS[name]


def default_precision(target: str) -> str:
    """Return the default precision of a target or of "portable". Raises LiraError as `target_named`."""
    return (PORTABLE if target == PORTABLE.name else target_named(target)).precisions[0]
