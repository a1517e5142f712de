"""The rows of a scene's KV cache: what each was made of, and which of them the next prompt keeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import groupby, takewhile
from typing import Literal

import numpy as np

from lira_engine.engines.runner import KvCache, LlmOutput
from lira_runtime.loop import Embed, Llm
from lira_runtime.prompts import Prompt
from lira_runtime.timings import Timings
from lira_runtime.turns import Piece, Region

Row = int | Region | Literal["image"]
"""A token id, or one of the rows of a region or of the image."""


class SceneRows:
    """A KV cache that knows its rows.

    Rows are noted before the language model reads them, and count once it has. So they are right at any
    moment: after an error in a pass, after an answer that was left in the middle, and with whatever drafts or
    beams have put behind them into the cache.
    """

    def __init__(
        self,
        image: np.ndarray,  # [P, C]
        region_rows: int,  # N, of any region
        embed: Embed,
        encode_region: Callable[[np.ndarray], np.ndarray],  # mask [H, W] bool -> features [N, C]
    ) -> None:
        self.image = image
        self._region_rows = region_rows
        self._embed = embed
        self._encode_region = encode_region
        self._cache: KvCache | None = None
        self._rows: list[Row] = []  # those that were read, and behind them those to read next
        self._read = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the image's rows and of the cache, on the host and on the device."""
        return self.image.nbytes + (0 if self._cache is None else self._cache.nbytes)

    def free(self) -> None:
        """Drop the image's rows and the cache."""
        self.image = self.image[:0].copy()
        self._cache, self._rows, self._read = None, [], 0

    def count(self, pieces: Sequence[Piece]) -> int:
        """Return how many rows these are."""
        return sum(self._region_rows if isinstance(piece, Region) else 1 for piece in pieces)

    def length(self, prompt: Prompt) -> int:
        """Return how many rows a prompt has."""
        return self.count((*prompt.before, *prompt.history, *prompt.after)) + len(self.image)

    def read_up_to_question(
        self, prompt: Prompt, llm: Llm, new_cache: Callable[[], KvCache], timings: Timings
    ) -> KvCache:
        """Return the cache with exactly the rows of [before, image, history].

        It keeps what it has of them: [before, image] whole or not at all, and the history up to the first row
        that is another. What it lacks is read in two passes, [before, image] and the history.
        """
        if self._cache is None:
            self._cache = new_cache()
        image_row: list[Row] = ["image"]
        head = [*prompt.before, *image_row * len(self.image)]
        history = self._spread(prompt.history)
        kept = self._keep([*head, *history])
        if kept < len(head):
            kept = self._keep([])
            embeds = np.concatenate([self._embed(prompt.before), self.image])
            self._prefill(llm, head, embeds)
        timings.prompt_tokens, timings.cached_tokens = self.length(prompt), kept
        timings.history_kept = max(kept - len(head), 0)
        if unread := history[timings.history_kept :]:
            parts = [self._embed_run(row, sum(1 for _ in run), timings) for row, run in groupby(unread)]
            self._prefill(llm, unread, np.concatenate(parts))
        return self._cache

    def note(self, pieces: Sequence[Piece]) -> None:
        """Say what the language model reads next."""
        self._rows += self._spread(pieces)

    def counted(self, llm: Llm) -> Llm:
        """Return `llm`, with the rows that it reads counted. It must read those that were noted, in order."""
        return _CountedLlm(llm, self._count_read)

    def _count_read(self, rows: int) -> None:
        self._read += rows
        assert self._read == len(self._rows), "the language model read other rows than were noted"

    def _keep(self, wanted: Sequence[Row]) -> int:
        """Cut the cache to the rows that `wanted` begins with; return how many these are."""
        assert self._cache is not None
        pairs = zip(self._rows[: self._read], wanted, strict=False)
        self._read = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        del self._rows[self._read :]
        self._cache.truncate(self._read)
        return self._read

    def _prefill(self, llm: Llm, rows: Sequence[Row], embeds: np.ndarray) -> None:
        assert self._cache is not None
        self._rows += rows
        self.counted(llm).forward(embeds, self._cache, ())  # no token is chosen after them

    def _spread(self, pieces: Sequence[Piece]) -> list[Row]:
        return [row for piece in pieces for row in [piece] * self.count([piece])]

    def _embed_run(self, row: Row, count: int, timings: Timings) -> np.ndarray:
        """Return the embeddings of equal rows that follow each other."""
        if isinstance(row, int):
            return self._embed([row] * count)
        assert isinstance(row, Region) and count == self._region_rows
        started = time.perf_counter()
        features = self._encode_region(row.mask)
        timings.regions.append(time.perf_counter() - started)
        return features


class _CountedLlm:
    def __init__(self, llm: Llm, count: Callable[[int], None]) -> None:
        self._llm = llm
        self._count = count

    def forward(
        self, embeds: np.ndarray, cache: KvCache, logit_positions: Sequence[int] = (-1,)
    ) -> LlmOutput:
        output = self._llm.forward(embeds, cache, logit_positions)
        self._count(len(embeds))
        return output
