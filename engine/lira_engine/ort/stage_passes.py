"""The passes of a stage over the bundle's check vectors, as plain feeds, with the caches that a pass leaves
handed to the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from lira_engine.bundle.check_vectors import CheckVectors
from lira_engine.engines.llm_tensors import cache_output, is_cache_input, with_lengths
from lira_engine.engines.replay import LlmPass
from lira_engine.ort.cuts import Cuts

Arrays = Mapping[str, np.ndarray]
SCALE = 0.05
"""Of an int8 cache's channels. It need not fit their range: all sides compute with the same one."""


@dataclass(frozen=True)
class Ran:
    """A pass. `name`: such as "tile 2"; "" if the stage has only one. `outputs`: with its caches. `start`: of
    the language model's rows."""

    name: str
    feeds: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    start: int = 0


def run_passes(
    stage: str,
    cuts: Cuts,
    vectors: CheckVectors,
    llm_passes: Iterable[LlmPass],
    run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
    tiles: int = 1,
) -> Iterator[Ran]:
    """Run the passes one by one. `llm_passes`: of the language model. `run`: feeds of one -> its outputs.
    `tiles`: that the semantic encoder gets in a pass, as from `run_stage`."""
    if stage == "llm":
        yield from _llm(cuts, vectors, llm_passes, run)
    elif tiles > 1:
        given = vectors.inputs["pixel_values"]
        feeds = {"pixel_values": np.resize(given, (tiles, *given.shape[1:]))}
        yield Ran(f"{tiles} tiles at once", feeds, run(feeds))
    elif stage == "semantic_encoder":
        for i, tile in enumerate(vectors.inputs["pixel_values"]):
            feeds = {"pixel_values": tile[None]}
            yield Ran(f"tile {i + 1}", feeds, run(feeds))
    else:
        feeds = dict(vectors.inputs)
        yield Ran("", feeds, run(feeds))


def together(passes: Iterable[Ran], vectors: CheckVectors) -> dict[str, np.ndarray]:
    """Return the recorded outputs out of those of all passes."""
    done = list(passes)
    if "logit_positions" not in vectors.inputs:
        return {name: np.concatenate([one.outputs[name] for one in done]) for name in vectors.outputs}
    rows: dict[int, tuple[Ran, int]] = {}
    for one in done:
        for i, position in enumerate(one.feeds["logit_positions"].tolist()):
            rows[one.start + position] = one, i
    asked = [rows[position] for position in vectors.inputs["logit_positions"].tolist()]
    return {
        name: np.stack([one.outputs[name][0, i] for one, i in asked])[None]
        for name in ("logits", "hidden_states")
    }


def _llm(
    cuts: Cuts,
    vectors: CheckVectors,
    passes: Iterable[LlmPass],
    run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
) -> Iterator[Ran]:
    state = {}
    for name, (shape, dtype) in cuts.inputs.items():
        if is_cache_input(name):
            state[name] = np.zeros(shape, dtype)
        elif "_scales." in name:
            state[name] = np.full(shape, SCALE, dtype)
    embeds = vectors.inputs["inputs_embeds"]
    for one in passes:
        rows = one.stop - one.start
        asked = [position - one.start for position in one.asked] or [rows - 1]
        given = {
            "inputs_embeds": embeds[:, one.start : one.stop],
            "position": np.array([one.start], np.int64),
            "logit_positions": np.array(asked, np.int64),
        }
        feeds = {**state, **with_lengths(given, cuts.inputs)}
        outputs = run(feeds)
        what = "decode step" if rows == 1 and one.start else "prefill"
        at = f"at row {one.start}" if rows == 1 else f"of rows {one.start} to {one.stop - 1}"
        yield Ran(f"{what} {at}", feeds, outputs, one.start)
        state |= {name: outputs[cache_output(name)] for name in state if is_cache_input(name)}
