"""Check vectors run as the runtime runs: prefill, chunks and decode steps on one cache."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lira_engine import Bundle, LiraError
from lira_engine.bundle.check_vectors import CheckVectors
from lira_engine.engines.replay import SINGLE_STEPS, run_llm, run_stage, tile_counts
from lira_engine.engines.runner import CountedRows, LlmOutput
from lira_engine.open import open_llm


def test_check_vectors_must_begin_with_an_empty_cache(made_bundle: Path) -> None:
    with pytest.raises(
        LiraError, match="begin at position 4, expected an empty cache: export the bundle again"
    ):
        run_llm(None, Bundle.open(made_bundle).check_vectors("llm"))  # type: ignore[arg-type]


@pytest.mark.portable
def test_check_vectors_run_in_chunks_and_decode_steps(nano_bundle: Path) -> None:
    """The check vectors cover prefill, a chunk on a filled cache, and decode steps."""
    bundle = Bundle.open(nano_bundle)
    vectors = bundle.check_vectors("llm")
    with open_llm(bundle, "portable", "fp32", 1) as llm:
        rows: list[int] = []

        class Watched:
            def new_cache(self) -> Any:
                return llm.new_cache()

            def forward(self, embeds: np.ndarray, cache: Any, asked: Any) -> Any:
                rows.append(len(embeds))
                assert len(asked) <= 4  # an engine with profiles takes no more at once
                return llm.forward(embeds, cache, asked)

        run_llm(Watched(), vectors)  # type: ignore[arg-type]
    steps = [1] * SINGLE_STEPS
    assert rows[-2 * SINGLE_STEPS :] == 2 * steps and rows[0] > 1 and rows[1] > 1
    assert sum(rows) == vectors.inputs["inputs_embeds"].shape[1] + SINGLE_STEPS


def test_the_output_that_is_farther_from_the_recorded_one_counts() -> None:
    """Of the last rows, which run twice; one that is not finite is the farthest."""
    rows = 6
    vectors = CheckVectors(
        {
            "inputs_embeds": np.arange(rows, dtype=np.float32).reshape(1, rows, 1),
            "position": np.zeros(1, np.int64),
            "logit_positions": np.array([0, 3, 4, 5]),
        },
        {name: np.zeros((1, 4, 1), np.float32) for name in ("logits", "hidden_states")},
    )

    class Once:
        """Wrong at a row in its first or second pass."""

        def __init__(self, wrong: dict[tuple[int, int], float]) -> None:
            self.wrong, self.seen = wrong, Counter[int]()

        def new_cache(self) -> Any:
            return CountedRows(rows)

        def forward(self, embeds: np.ndarray, cache: Any, asked: Any) -> LlmOutput:
            values = []
            for i in asked:
                row = int(embeds[i, 0])
                self.seen[row] += 1
                values.append([self.wrong.get((row, self.seen[row]), 0.0)])
            cache.fill(cache.length + len(embeds))
            return LlmOutput(np.array(values, np.float32), np.array(values, np.float32))

    for wrong, expected in (
        ({(3, 1): 2.0, (4, 2): -3.0}, [0, 2, -3, 0]),
        ({(4, 1): np.nan, (5, 2): np.nan}, [0, 0, np.nan, np.nan]),
    ):
        found = run_llm(Once(wrong), vectors)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found["logits"][0, :, 0], expected)
        np.testing.assert_array_equal(found["hidden_states"], found["logits"])


@pytest.mark.parametrize("at_once", [1, 5])
def test_tiles_are_read_one_at_a_time_or_in_one_pass(at_once: int) -> None:
    """The recorded tiles over and over; the last of each counts."""
    passes = []

    class Encoder:
        name = "semantic_encoder"

        def run(self, feeds: Any) -> dict[str, np.ndarray]:
            passes.append(len(feeds["pixel_values"]))
            tiles = feeds["pixel_values"].reshape(passes[-1], -1)[:, :1]
            return {"features": tiles + 10 * np.arange(passes[-1])[:, None]}

    tiles = np.broadcast_to(np.arange(2, dtype=np.float32)[:, None, None, None], (2, 3, 4, 4))
    found = run_stage(Encoder(), {"pixel_values": tiles}, at_once)  # type: ignore[arg-type]
    assert passes == ([1, 1] if at_once == 1 else [5])
    assert found["features"].tolist() == ([[0], [1]] if at_once == 1 else [[40], [31]])
    assert tile_counts("semantic_encoder", at_once) == ((1,) if at_once == 1 else (1, 5))
    assert tile_counts("sefe", at_once) == (1,)
    assert tile_counts("semantic_encoder", 2) == (1, 2)
