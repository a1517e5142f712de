"""Run a stage on the bundle's check vectors, in the way in which the runtime runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lira_engine.bundle.check_vectors import CheckVectors
from lira_engine.engines.runner import LlmRunner, StageRunner
from lira_engine.errors import LiraError

SINGLE_STEPS = 2
"""Rows at the end of the check vectors that are run one by one, like decode steps."""


def run_stage(runner: StageRunner, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a stage's outputs. The semantic encoder gets its tiles one at a time, as from the runtime."""
    if runner.name != "semantic_encoder":
        return runner.run(feeds)
    tiles = [runner.run({"pixel_values": tile[None]}) for tile in feeds["pixel_values"]]
    return {name: np.concatenate([tile[name] for tile in tiles]) for name in tiles[0]}


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
    filled. Raises LiraError as that."""
    passes, embeds = llm_passes(vectors), vectors.inputs["inputs_embeds"][0]
    cache = llm.new_cache()
    logits, hidden = {}, {}
    for one in passes:
        out = llm.forward(embeds[one.start : one.stop], cache, [p - one.start for p in one.asked] or (-1,))
        for i, position in enumerate(one.asked):
            logits[position], hidden[position] = out.logits[i], out.hidden[i]
    asked = [int(p) for p in vectors.inputs["logit_positions"]]
    return {
        "logits": np.stack([logits[p] for p in asked])[None],
        "hidden_states": np.stack([hidden[p] for p in asked])[None],
    }
