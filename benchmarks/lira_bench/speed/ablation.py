"""The paper's ablation of speed: the cost of SEFE and ILVC (supplementary text, section 7)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lira_bench.speed.measure import Run
from lira_bench.speed.record import Recorder, Wrapped
from lira_engine.engines.runner import Engines, Feeds, StageRun, StageRunner, Tensor
from lira_runtime.prompts import Ilvc


@dataclass(frozen=True)
class Variant:
    """One way to run. `against`: the variant to compare with, which differs in one point. `paper`: the gain
    that the authors report, tokens per second. `task`: None is the requested task."""

    name: str
    title: str
    ilvc: Ilvc = "on"
    task: str | None = None
    against: str | None = None
    paper: float | None = None
    change: Callable[[Engines, Recorder], Engines] | None = None


@dataclass(frozen=True)
class _NotRun:
    """The result of a stage that did not run."""

    outputs: Mapping[str, np.ndarray]

    def numpy(self, name: str) -> np.ndarray:
        return self.outputs[name]


@dataclass(frozen=True)
class _PassWithoutQueries:
    begun: StageRun

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        return self.begun.outputs

    def numpy(self, name: str) -> np.ndarray:
        array = self.begun.numpy(name)
        return np.zeros_like(array) if name == "query_valid" else array


class _NoQueries(Wrapped):
    """The pixel encoder with all queries marked invalid: none joins the prefix."""

    def start(self, feeds: Feeds) -> StageRun:
        return _PassWithoutQueries(self.stage.start(feeds))


class _LeftOut(Wrapped):
    """A stage that does not run. Its outputs are zeros; those named in `empty` have no rows."""

    def __init__(self, stage: StageRunner, empty: Sequence[str] = ()) -> None:
        super().__init__(stage)
        self._empty = empty

    def start(self, feeds: Feeds) -> StageRun:
        outputs = {}
        for name, spec in self.output_specs.items():
            shape = [size if isinstance(size, int) else 1 for size in spec.shape]
            if name in self._empty:
                shape[1] = 0
            outputs[name] = np.zeros(shape, spec.dtype)
        return _NotRun(outputs)


class _RegionsOnly(Wrapped):
    """The semantic encoder, run for regions only: the image's tiles give no rows."""

    def __init__(self, stage: StageRunner, recorder: Recorder) -> None:
        super().__init__(stage)
        self._recorder = recorder

    def start(self, feeds: Feeds) -> StageRun:
        if self._recorder.phase != "look":
            return self.stage.start(feeds)
        ((name, spec),) = self.output_specs.items()
        tiles = feeds["pixel_values"].shape[0]
        return _NotRun({name: np.zeros((tiles, 0, int(spec.shape[-1])), spec.dtype)})


def without_fusion(engines: Engines, recorder: Recorder) -> Engines:
    """Return engines whose prefix has the tiles only: no fusion, no rows for cells and queries. The pixel
    encoder still runs, for masks."""
    return replace(
        engines,
        pixel_encoder=_NoQueries(engines.pixel_encoder),
        sefe=_LeftOut(engines.sefe, empty=("pixel_tokens",)),
    )


def pixel_encoder_alone(engines: Engines, recorder: Recorder) -> Engines:
    """Return engines whose prefix has cells and queries only, as in OMG-LLaVA, on which LIRA builds: the
    semantic encoder sees regions only, and nothing is fused."""
    return replace(
        engines,
        semantic_encoder=_RegionsOnly(engines.semantic_encoder, recorder),
        sefe=_LeftOut(engines.sefe),
    )


FULL = Variant("full", "full")
VARIANTS = (
    FULL,
    Variant("no-sefe-tiles", "no SEFE, tiles alone", against="full", paper=1.8, change=without_fusion),
    Variant(
        "no-sefe-pixels",
        "no SEFE, pixels alone",
        against="full",
        paper=1.8,
        change=pixel_encoder_alone,
    ),
    Variant("no-ilvc", "no ILVC", ilvc="off", against="full", paper=1.3),
    Variant("vqa", "VQA", task="vqa"),
    Variant("vqa-no-ilvc", "VQA, no ILVC", ilvc="off", task="vqa", against="vqa", paper=0.0),
)


def ablation(runs: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """Return rows for JSON from the runs of each variant: median rates, their differences (median over the
    rounds) and the paper's difference."""
    rows = []
    for variant in VARIANTS:
        of_variant = runs[variant.name]
        row: dict[str, Any] = {
            "name": variant.name,
            "title": variant.title,
            "against": variant.against,
            "paper_difference": variant.paper,
            "new_tokens": round(statistics.median(run.new_tokens for run in of_variant)),
            "total_s": statistics.median(run.total for run in of_variant),
        }
        for rate in ("decode_tokens_per_s", "end_to_end_tokens_per_s"):
            mine = [getattr(run, rate) for run in of_variant]
            row[rate] = statistics.median(mine)
            if variant.against is not None:
                theirs = [getattr(run, rate) for run in runs[variant.against]]
                row[f"{rate}_difference"] = statistics.median(
                    a - b for a, b in zip(mine, theirs, strict=True)
                )
        rows.append(row)
    return rows
