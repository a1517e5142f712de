"""Learn what recipes are made of: run the stages on recorded sequences and keep statistics, scales and codes.

Everything that took time is in the work folder as soon as it is known: a killed calibration goes on there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from lira_calib.choosing.assemble import StageMaterial, Storage
from lira_calib.methods.rules import range_method
from lira_calib.methods.smoothing import smoothing_groups, smoothing_scale
from lira_calib.methods.statistics import InputStatistics, best_range
from lira_calib.runs.observe import observe
from lira_calib.runs.session import release
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.graphs import read_graph
from lira_engine.engines.recipe import Smoothing
from lira_engine.lowering.weights import constant_matmuls

if TYPE_CHECKING:
    from lira_calib.data.sequences import Sequence as Recorded
    from lira_calib.scoring.score import Scorer

Progress = Callable[[int, int], None]
Values = Callable[[str], np.ndarray]
"""Returns a weight [K, N] float32 by its name; it is read anew each time."""

TOGETHER = 8
"""Sequences that a graph is opened for. After each such chunk the statistics are on disk."""


def weights_of(model: ir.Model) -> Values:
    """Return a function that reads the matmul weights of a graph."""
    found = {one.name: one.weight for one in constant_matmuls(model.graph)}

    def read(name: str) -> np.ndarray:
        values = np.asarray(found[name].numpy()).astype(np.float32)
        release(found[name])
        return values

    return read


def vision_material(
    bundle: Bundle,
    stage: str,
    sequences: Sequence[Recorded],
    work: Path,
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
) -> StageMaterial:
    """Return what calibration knows of a stage other than the language model, after running it on the feeds
    of `sequences`. Raises LiraError if a matmul reads a value that is not finite."""
    model = read_graph(bundle.stage_file(stage))
    model.graph.name = stage  # by which `observe` lowers it
    file = work / "statistics" / f"{stage}.statistics"
    file.parent.mkdir(parents=True, exist_ok=True)
    statistics = InputStatistics.load(file) if file.exists() else InputStatistics()
    left = [one for one in sequences if one.key not in statistics.seen]
    progress(len(sequences) - len(left), len(sequences))
    for start in range(0, len(left), TOGETHER):
        chunk = left[start : start + TOGETHER]
        observe(model, _Feeds(chunk, stage), statistics.add, work / "graphs", threads)
        statistics.seen += [one.key for one in chunk]
        statistics.save(file)
        progress(len(sequences) - len(left) + start + len(chunk), len(sequences))
    return material_of(model, stage, statistics)


def decoder_material(
    bundle: Bundle,
    scorer: Scorer,
    work: Path,
    threads: int | None = None,
    progress: Progress = lambda done, total: None,
) -> StageMaterial:
    """Return what calibration knows of the pixel decoder, whose input is made by the language model in fp32:
    it runs on every `[SEG]` of the scorer's sequences."""
    stage = "pixel_decoder"
    model = read_graph(bundle.stage_file(stage))
    model.graph.name = stage
    file = work / "statistics" / f"{stage}.statistics"
    file.parent.mkdir(parents=True, exist_ok=True)
    progress(0, 1)
    if file.exists():
        statistics = InputStatistics.load(file)
    else:
        statistics = InputStatistics()
        observe(model, _DecoderFeeds(scorer), statistics.add, work / "graphs", threads)
        statistics.save(file)
    progress(1, 1)
    return material_of(model, stage, statistics)


@dataclass(frozen=True)
class _DecoderFeeds:
    """All runs of the pixel decoder; can be iterated again and again."""

    scorer: Scorer

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        for _, feeds in self.scorer.decoder_feeds():
            yield feeds


@dataclass(frozen=True)
class _Feeds:
    """All runs of a stage in some sequences; can be iterated again and again."""

    sequences: Sequence[Recorded]
    stage: str

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        for sequence in self.sequences:
            yield from sequence.feeds(self.stage)


def material_of(model: ir.Model, stage: str, statistics: InputStatistics) -> StageMaterial:
    """Return the material that follows from a stage's statistics: SmoothQuant's scales, and ranges."""
    values = weights_of(model)
    groups = [one for one in smoothing_groups(model) if all(name in statistics for name in one.multiplied)]
    scales = smoothquant_scales(groups, statistics, values)
    rows = {name: statistics.rows(name) for name in statistics}
    ranges = partial(range_of, stage, statistics, values)
    return StageMaterial(groups, scales, ranges, partial(spread_of, statistics), rows=rows)


def smoothquant_scales(
    groups: Sequence[Smoothing], statistics: InputStatistics, values: Values
) -> dict[tuple[str, str], np.ndarray]:
    """Return SmoothQuant's scale of each group, as StageMaterial.scales has them."""
    return {
        ("smoothquant", one.name): smoothing_scale(
            statistics.channel_largest(one.multiplied[0]), [values(name) for name in one.multiplied]
        )
        for one in groups
    }


def range_of(
    stage: str,
    statistics: InputStatistics,
    values: Values,
    weight: str,
    scale: np.ndarray | None,
    storage: Storage,
) -> tuple[float, float]:
    """Return the range of a weight's input in 8 bits: that of `rules.range_method`, or the one by which the
    matmul errs least. `scale` [K]: by which the input is divided."""
    matrix = values(weight)
    if scale is not None:
        statistics = _divided(statistics, weight, scale)
        matrix = matrix * scale[:, None]
    method = range_method(stage, weight)
    if method is not None:
        return statistics.ranges(weight, method)
    rounding = "fp8" if storage.kind == "fp8" else "unsigned"
    return best_range(statistics, weight, matrix, rounding)[1]


def spread_of(statistics: InputStatistics, weight: str, scale: np.ndarray | None) -> float:
    """Return the largest value of a weight's input over that of a typical row, the median of the sample;
    `scale` [K]: by which the input is divided."""
    divisor = np.float32(1) if scale is None else scale
    typical = float(np.median(np.abs(statistics.sample(weight) / divisor).max(axis=1)))
    largest = float((statistics.channel_largest(weight) / divisor).max())
    return largest / typical if typical else 1.0


def _divided(statistics: InputStatistics, weight: str, scale: np.ndarray) -> InputStatistics:
    """Return the statistics of a smoothed input: of the sampled rows, and of the largest value of each
    channel, which the sample may miss."""
    found = InputStatistics(statistics.sample_rows)
    found.add(weight, statistics.sample(weight) / scale)
    largest = statistics.channel_largest(weight) / scale
    if statistics.high(weight) > 0:
        found.add(weight, np.minimum(largest, statistics.high(weight) / scale)[None])
    if statistics.low(weight) < 0:
        found.add(weight, -np.minimum(largest, -statistics.low(weight) / scale)[None])
    return found
