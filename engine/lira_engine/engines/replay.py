"""A stage's runner on the bundle's check vectors, used as the runtime uses it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from lira_engine.bundle.check_vectors import CheckVectors
from lira_engine.engines.runner import LlmRunner, StageRunner
from lira_engine.errors import LiraError

SINGLE_STEPS = 2
"""Rows at the end of the check vectors that go one by one, as decoding does."""


def run_stage(runner: StageRunner, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A stage's outputs; tiles go through the semantic encoder one at a time, as the runtime gives them."""
    if runner.name != "semantic_encoder":
        return runner.run(feeds)
    tiles = [runner.run({"pixel_values": tile[None]}) for tile in feeds["pixel_values"]]
    return {name: np.concatenate([tile[name] for tile in tiles]) for name in tiles[0]}


def run_llm(llm: LlmRunner, vectors: CheckVectors) -> dict[str, np.ndarray]:
    """The language model on check vectors that begin with an empty cache: first half, second half, and the
    last rows one by one, each pass reading what those before it left in the cache."""
    inputs = vectors.inputs
    if inputs["position"].any():
        raise LiraError(
            f"the language model's check vectors begin at position {int(inputs['position'][0])}, expected an "
            "empty cache: export the bundle again with `lira-edge export`"
        )
    embeds, asked = inputs["inputs_embeds"][0], [int(p) for p in inputs["logit_positions"]]
    rows = len(embeds)
    single = range(max(1, rows - SINGLE_STEPS), rows)
    edges = sorted({0, (rows + 1) // 2, *single, rows})
    cache = llm.new_cache()
    logits, hidden = {}, {}
    for start, stop in pairwise(edges):
        wanted = [p for p in asked if start <= p < stop]
        out = llm.forward(embeds[start:stop], cache, [p - start for p in wanted] or (-1,))
        for i, position in enumerate(wanted):
            logits[position], hidden[position] = out.logits[i], out.hidden[i]
    return {
        "logits": np.stack([logits[p] for p in asked])[None],
        "hidden_states": np.stack([hidden[p] for p in asked])[None],
    }
