"""Beam search as in transformers' `generate(num_beams=...)`, for the protocol of the authors' POPE script."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from lira_engine.engines.runner import KvCache
from lira_engine.errors import LiraError
from lira_runtime.loop import Embed, Llm
from lira_runtime.sampling import check_finite

_NEVER = -1e9  # score of a beam that is not used yet


@dataclass
class _Beam:
    tokens: tuple[int, ...]
    score: float  # sum of the tokens' log probabilities


@dataclass
class _Finished:
    """The best answers that an end token closed; their `score` is the mean log probability per token."""

    most: int
    found: list[_Beam] = field(default_factory=list)  # without their end token

    def add(self, tokens: tuple[int, ...], total: float, length: int) -> None:
        """Add an answer; if there are too many, drop the worst. Of equals, the older one stays."""
        if len(self.found) < self.most:
            self.found.append(_Beam(tokens, total / length))
        elif total / length > self._worst.score:
            self.found.remove(self._worst)
            self.found.append(_Beam(tokens, total / length))

    def cannot_be_beaten(self, best_total: float, length: int) -> bool:
        """Whether no running answer can win, the best of them having `best_total` at `length` tokens."""
        return len(self.found) == self.most and self._worst.score >= best_total / length

    @property
    def _worst(self) -> _Beam:
        return min(self.found, key=lambda beam: beam.score)


def beam_search(
    llm: Llm,
    cache: KvCache,
    prompt: np.ndarray,  # [S, C], what `cache` does not hold yet
    embed: Embed,
    beams: int,
    max_new_tokens: int,
    end_ids: Collection[int],
    stop_ids: Collection[int] = (),
    min_new_tokens: int = 0,
) -> tuple[int, ...]:
    """Return the token ids of the answer with the highest mean log probability that `beams` beams find.

    Follows transformers 4.37.2, which the authors pin, with its defaults (length penalty 1, early stopping
    False). One of `end_ids` closes an answer, is part of it, and is not among its first `min_new_tokens`
    tokens. One of `stop_ids` ends the whole search if it is the last token of the best beam; on other beams
    it is a token like any other (as in xtuner's StopWordStoppingCriteria, which reads the first sequence).

    The beams share one KV cache: each keeps the rows that it has in common with the one before and reads the
    others again, so a token costs up to `beams` passes.
    Raises LiraError for fewer than two beams, and for logits that are not finite.
    """
    if beams < 2:
        raise LiraError(f"beams is {beams}; expected 2 or more (1 is greedy)")
    reader = _Reader(llm, cache, prompt, embed)
    max_new_tokens = min(max_new_tokens, reader.room + 1)  # the LLM does not read the last token
    running = [_Beam((), 0.0), *(_Beam((), _NEVER) for _ in range(beams - 1))]
    finished = _Finished(beams)
    for length in range(1, max_new_tokens + 1):
        # The first step has one beam; the others are not used yet.
        scores = np.stack([reader.log_probabilities(beam.tokens) for beam in running])  # [beams, V]
        if length <= min_new_tokens:
            scores[:, list(end_ids)] = -np.inf
        totals = scores + np.array([[beam.score] for beam in running], np.float32)
        candidates = _best(totals, max(2, 1 + len(end_ids)) * beams)
        grown: list[_Beam] = []
        for rank, (index, token) in enumerate(candidates):
            total = float(totals[index, token])
            tokens = running[index].tokens
            if token not in end_ids:
                grown.append(_Beam((*tokens, token), total))
            elif rank < beams:
                finished.add((*tokens, token), total, length)
            if len(grown) == beams:
                break
        running = grown
        if finished.cannot_be_beaten(float(totals[candidates[0]]), length):
            return _the_best(finished.found)
        if running[0].tokens[-1] in stop_ids:
            break
    for beam in running:
        finished.add(beam.tokens, beam.score, len(beam.tokens))
    return _the_best(finished.found)


def _best(totals: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Return (beam, token) of the `count` highest totals, the highest first."""
    flat = totals.ravel()
    chosen = np.argsort(-flat, kind="stable")[:count]
    return [divmod(int(place), totals.shape[1]) for place in chosen]


def _the_best(found: Sequence[_Beam]) -> tuple[int, ...]:
    """Return the answer with the highest score; of equals, the one found last."""
    return sorted(found, key=lambda beam: beam.score)[-1].tokens


class _Reader:
    """Computes next-token log probabilities for any answer to one prompt."""

    def __init__(self, llm: Llm, cache: KvCache, prompt: np.ndarray, embed: Embed) -> None:
        self._llm = llm
        self._cache = cache
        self._embed = embed
        self._held: tuple[int, ...] = ()  # the answer whose rows follow the prompt's in the cache
        self._known: dict[tuple[int, ...], np.ndarray] = {
            (): _log_softmax(llm.forward(prompt, cache, logit_positions=(-1,)).logits[-1])
        }
        self._rows = cache.length

    @property
    def room(self) -> int:
        """How many tokens of an answer fit into the cache."""
        return self._cache.capacity - self._rows

    def log_probabilities(self, tokens: tuple[int, ...]) -> np.ndarray:
        """[V] float32"""
        if tokens not in self._known:
            shared = 0
            while shared < min(len(self._held), len(tokens) - 1) and self._held[shared] == tokens[shared]:
                shared += 1
            self._cache.truncate(self._rows + shared)
            output = self._llm.forward(self._embed(tokens[shared:]), self._cache, logit_positions=(-1,))
            self._held = tokens
            self._known = {tokens: _log_softmax(output.logits[-1])}
        return self._known[tokens]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    check_finite(logits)
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()), np.float32)
