"""A language model that computes nothing and keeps what it reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lira_engine.bundle.manifest import ModelSpec
from lira_engine.engines.runner import Closing, CountedRows, KvCache, LlmOutput, check_embeddings, check_room


class RecordedRows(CountedRows):
    """The rows of one sequence. `rows`: [capacity, C] float32; `ends`: number of rows after each pass."""

    def __init__(self, capacity: int, width: int) -> None:
        super().__init__(capacity)
        self.rows = np.zeros((capacity, width), np.float32)
        self.ends: list[int] = []

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes


class RecordingLlm(Closing):
    """Keeps the embeddings that a scene feeds to the language model; all outputs are zero.

    Only forced answers make sense with it. `latest` is the cache of the latest pass.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self.latest: RecordedRows | None = None

    @property
    def capacity(self) -> int:
        return self._spec.context_length

    def new_cache(self) -> RecordedRows:
        return RecordedRows(self.capacity, self._spec.hidden_size)

    def forward(
        self, embeds: np.ndarray, cache: KvCache, logit_positions: Sequence[int] = (-1,)
    ) -> LlmOutput:
        rows = check_embeddings(embeds, logit_positions, self._spec.hidden_size)
        assert isinstance(cache, RecordedRows)
        check_room(cache.length, cache.capacity, rows)
        cache.rows[cache.length : cache.length + rows] = embeds
        cache.fill(cache.length + rows)
        cache.ends.append(cache.length)
        self.latest = cache
        asked = len(logit_positions)
        return LlmOutput(
            np.zeros((asked, self._spec.vocab_size), np.float32),
            np.zeros((asked, self._spec.hidden_size), np.float32),
        )

    def close(self) -> None:
        self.latest = None
