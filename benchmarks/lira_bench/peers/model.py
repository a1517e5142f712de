"""A turn of a language model, ours or a peer's: read a prompt, decode tokens, greedily."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """Seconds of prefill and of the timed decode steps; all chosen tokens, the prompt's next one first."""

    prefill_s: float
    decode_s: float
    tokens: list[int]


class Stepwise:
    """A model that is run pass by pass. Derived classes implement the passes."""

    def begin(self) -> None:
        """Make room for a new sequence, before the clock starts."""

    def prefill(self, ids: Sequence[int]) -> int:
        """Forget the sequence, read `ids`, return the next token."""
        raise NotImplementedError

    def step(self, token: int) -> int:
        """Read the token that was chosen last, return the next one."""
        raise NotImplementedError

    def turn(self, ids: Sequence[int], steps: int) -> Turn:
        """Prefill `ids`, decode one token that is not timed, then `steps` tokens that are."""
        self.begin()
        started = time.perf_counter()
        tokens = [self.prefill(ids)]
        prefilled = time.perf_counter()
        tokens.append(self.step(tokens[-1]))
        warm = time.perf_counter()
        for _ in range(steps):
            tokens.append(self.step(tokens[-1]))
        return Turn(prefilled - started, time.perf_counter() - warm, tokens)
