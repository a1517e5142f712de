"""Run a stage on the bundle's check vectors, in the way in which the runtime runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lira_engine.bundle.check_vectors import CheckVectors
from lira_engine.engines.runner import Engines, LlmRunner, StageRunner
from lira_engine.errors import LiraError

SINGLE_STEPS = 3
"""Rows at the end of the check vectors that are run one by one, like decode steps: a step that was captured
as a graph is replayed at two other positions."""


def tile_counts(stage: str, tiles_at_once: int) -> tuple[int, ...]:
    """Return the numbers of tiles in a pass that `run_stage` must try: 1, and the most of a semantic encoder
    that takes several."""
    return (1, tiles_at_once) if stage == "semantic_encoder" and tiles_at_once > 1 else (1,)


def stage_runs(engines: Engines, stage: str, vectors: CheckVectors) -> Iterator[dict[str, np.ndarray]]:
    """Yield a stage's outputs on its check vectors, once for each way in which the runtime runs it: a region
    is one tile, an image may be several at once."""
    if stage == "llm":
        yield run_llm(engines.llm, vectors)
        return
    for tiles in tile_counts(stage, engines.tiles_at_once):
        yield run_stage(getattr(engines, stage), vectors.inputs, tiles)


def run_stage(
    runner: StageRunner, feeds: Mapping[str, np.ndarray], tiles_at_once: int = 1
) -> dict[str, np.ndarray]:
    """Return a stage's outputs.

    The semantic encoder gets its tiles as from the runtime: one at a time, or as many in one pass as it takes
    `tiles_at_once`. These are the recorded ones over and over, and the outputs are of the last of each.
    """
    if runner.name != "semantic_encoder":
        return runner.run(feeds)
    tiles = feeds["pixel_values"]
    if tiles_at_once == 1:
        runs = [runner.run({"pixel_values": tile[None]}) for tile in tiles]
        return {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}
    found = runner.run({"pixel_values": np.resize(tiles, (tiles_at_once, *tiles.shape[1:]))})
    last = [range(i, tiles_at_once, len(tiles))[-1] for i in range(len(tiles))]
    return {name: array[last] for name, array in found.items()}


@dataclass(frozen=True)
class LlmPass:
    """Rows `start` to `stop` of the check vectors. `asked`: those of them whose outputs are recorded."""

    start: int
    stop: int
    asked: tuple[int, ...]


def llm_passes(vectors: CheckVectors) -> list[LlmPass]:
    """Return the passes of the language model: prefill in two halves, then the last rows one by one.

    Raises LiraError if the check vectors do not begin with an empty cache.
    """
    inputs = vectors.inputs
    if inputs["position"].any():
        raise LiraError(
            f"the language model's check vectors begin at position {int(inputs['position'][0])}, expected an "
            "empty cache: export the bundle again with `lira-edge export`"
        )
    rows, asked = inputs["inputs_embeds"].shape[1], [int(p) for p in inputs["logit_positions"]]
    single = range(max(1, rows - SINGLE_STEPS), rows)
    edges = sorted({0, (rows + 1) // 2, *single, rows})
    return [
        LlmPass(start, stop, tuple(p for p in asked if start <= p < stop)) for start, stop in pairwise(edges)
    ]


def run_llm(llm: LlmRunner, vectors: CheckVectors) -> dict[str, np.ndarray]:
    """Return the language model's outputs, each pass of `llm_passes` on the cache that the passes before it
    filled. Then the cache is cut to where the single rows begin, and they run again: of an output that
    differs, the one that is farther from the recorded one is returned. Raises LiraError as `llm_passes`."""
    passes, embeds = llm_passes(vectors), vectors.inputs["inputs_embeds"][0]
    asked = [int(p) for p in vectors.inputs["logit_positions"]]
    cache = llm.new_cache()
    expected = {name: vectors.outputs[name][0] for name in ("logits", "hidden_states")}
    found: dict[str, dict[int, np.ndarray]] = {name: {} for name in expected}  # by position
    steps = [one for one in passes if one.start and one.stop == one.start + 1]
    for one in (*passes, *steps):
        cache.truncate(one.start)
        out = llm.forward(embeds[one.start : one.stop], cache, [p - one.start for p in one.asked] or (-1,))
        for name, made in (("logits", out.logits), ("hidden_states", out.hidden)):
            for position, row in zip(one.asked, made, strict=False):
                right = expected[name][asked.index(position)]
                before = found[name].setdefault(position, row)
                if _distance(row, right) > _distance(before, right):
                    found[name][position] = row
    return {name: np.stack([by_position[p] for p in asked])[None] for name, by_position in found.items()}


def _distance(found: np.ndarray, expected: np.ndarray) -> float:
    """Return how far an output is from the recorded one; infinity if it is not finite."""
    distance = float(np.abs(found - expected).max())
    return distance if np.isfinite(distance) else np.inf
