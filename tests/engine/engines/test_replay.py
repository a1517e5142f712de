"""Check vectors run as the runtime runs: prefill, chunks and decode steps on one cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lira_engine import Bundle, LiraError
from lira_engine.engines.replay import run_llm
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
    assert sum(rows) == vectors.inputs["inputs_embeds"].shape[1] and rows[-2:] == [1, 1] and rows[0] > 1
