"""What a process takes after what is free was given back, and whether it grew."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass

from lira_bench.serving.server import Sample, Watch, sample
from lira_engine.system.free_memory import return_free_memory

WINDOWS = 50
"""Samples of a run."""


@dataclass(frozen=True)
class Limits:
    """Growth of the last fifth's median over the middle fifth's. mib: resident memory."""

    mib: float = 20.0
    files: float = 0
    threads: float = 0


def settled() -> Sample:
    """Collect garbage, give free memory back to the system, and return what this process then takes."""
    gc.collect()
    return_free_memory()
    return sample(os.getpid())


def record(
    samples: Sequence[Sample], probes: Sequence[str], counts: dict[str, int], limits: Limits
) -> dict[str, object]:
    """Return what was measured, and `failed`: what must not be. `probes`: digests of one answer."""
    watch = Watch(list(samples))
    grown = {
        "mib": watch.growth(lambda one: one.rss),
        "files": watch.growth(lambda one: one.files),
        "threads": watch.growth(lambda one: one.threads),
    }
    failed = [f"{name} grew by {by:.1f}" for name, by in grown.items() if by > getattr(limits, name)]
    if len(set(probes)) != 1:
        failed.append("the same question got another answer")
    return {
        "counts": counts,
        "growth": grown,
        "rss_mib": [round(one.rss, 1) for one in samples],
        "files": samples[-1].files,
        "threads": samples[-1].threads,
        "probes": len(probes),
        "failed": failed,
    }
