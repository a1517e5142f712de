"""Made-up results, and benchmarks that need no engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lira_bench.results import all_engines
from lira_bench.results.result import (
    Asked,
    BundleFacts,
    CardFigures,
    EngineResult,
    Figures,
    MachineFacts,
    Pictures,
    Results,
    WorstError,
)
from lira_bench.speed.request import Request
from lira_engine.system.machine import Gpu

CARD = CardFigures(
    peak_memory_mib=3100.0, clock_mhz=1800.0, power_w=20.5, temperature_c=61.0, energy_j_per_answer=22.8,
    energy_of="board", source="jetson-stats",
)  # fmt: skip


def a_record(total: float = 0.5) -> dict[str, Any]:
    """Return what bench.json says of the fields that results read, and others that must not be told."""
    return {
        "ttft_s": {"median": 0.25},
        "total_s": {"median": total},
        "tokens_per_s": {"decode": 43.2, "end_to_end": 10.8},
        "new_tokens": 5,
        "peak_rss_mib": 1234,
        "question": "Please segment the planted-secret.",
        "load": {
            "quiet": True,
            "text": "quiet",
            "during": {"others": 0.01, "programs": {"planted-secret": 0.01}},
        },
        "images": [{"name": "planted-secret.png", "width": 4, "height": 3}],
        "card": {
            "name": "x",
            "peak_memory_mib": 10,
            "power_w": {"mean": 5.0, "largest": 9.0},
            "clock_mhz": None,
        },
    }


@pytest.fixture
def measured_record() -> dict[str, Any]:
    return a_record()


@pytest.fixture
def results() -> Results:
    """A board's: two measured engines, one that failed and one for another machine."""
    figures = Figures(1.5, 4.0, 27.3, 8.18, 33, 2200, True, 0.02, CARD)
    slower = Figures(2.1, 6.0, 15.8, 4.74, 33, 3800, True, 0.02, CARD)
    error = WorstError(6e-4, "pixel_encoder", "mask_features", "verify")
    return Results(
        date="2026-11-27",
        machine=MachineFacts(
            "Linux 5.15.148 aarch64", "Cortex-A78AE", 6, 6, 7.4, ("asimd",),
            (Gpu("Orin", "7620 MiB", "540.4.0"),), ("NVIDIA Orin Nano (p3768+p3767)", "L4T 36.4.3"), "15W",
            {"lira-edge": "0.1.0", "python": "3.10.12"},
        ),
        bundle=BundleFacts("lira-2b", 64 * "a", synthetic=True, is_authors_model=True),
        asked=Asked("refseg", True, None, 5, 1, Pictures(1, "generated image", 1200, 800)),
        engines=(
            EngineResult("tensorrt-fp16", "measured", "", 4 << 30, {"tensorrt": "10.3.0"}, error, slower),
            EngineResult("tensorrt-int4", "measured", "", 2 << 30, {"tensorrt": "10.3.0"}, error, figures),
            EngineResult("cuda-fp16", "failed", "/home/a: out of memory", 4 << 30, {}, None),
            EngineResult("tensorrt-rtx-int4", "refused", "needs another card", None, None, None),
        ),
        drift=1.01,
    )  # fmt: skip


@dataclass
class Measuring:
    """Stands in for the processes. `reasons`: of engines that fail; `without`: those that leave no record."""

    reasons: dict[str, str] = field(default_factory=dict)
    without: set[str] = field(default_factory=set)
    record: Callable[[Request], dict[str, Any]] = lambda request: a_record()
    asked: list[Request] = field(default_factory=list)

    def __call__(self, request: Request, log: Path, progress: Callable[[str], None]) -> str | None:
        assert request.output is not None
        name = f"{request.target}-{request.precision}"
        self.asked.append(request)
        progress("run 1 of 1")
        log.write_text("")
        if name not in self.without:
            request.output.mkdir(parents=True, exist_ok=True)
            (request.output / "bench.json").write_text(json.dumps(self.record(request)))
        return self.reasons.get(name)


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> Measuring:
    standin = Measuring()
    monkeypatch.setattr(all_engines, "measure_apart", standin)
    return standin
