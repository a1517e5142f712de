"""What the benchmark asks of a language model, ours or a peer's, in its own process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Turn:
    """A prompt read, then tokens decoded. `tokens`: all that were chosen, the one after the prompt first."""

    prefill_s: float
    decode_s: float
    tokens: list[int]


class LanguageModel(Protocol):
    """Opened for one sequence; greedy."""

    def turn(self, ids: Sequence[int], steps: int) -> Turn:
        """Forget everything, read `ids`, decode one token that is not timed and then `steps` that are."""
        ...

    def close(self) -> None: ...


class Stepwise:
    """A model that is driven pass by pass. Derived classes say what a pass is."""

    def begin(self) -> None:
        """Before the clock starts: make room for a new sequence."""

    def prefill(self, ids: Sequence[int]) -> int:
        """Forget everything, read `ids`, choose the next token."""
        raise NotImplementedError

    def step(self, token: int) -> int:
        """Read the token that was chosen last, choose the next one."""
        raise NotImplementedError

    def turn(self, ids: Sequence[int], steps: int) -> Turn:
        self.begin()
        started = time.perf_counter()
        tokens = [self.prefill(ids)]
        prefilled = time.perf_counter()
        tokens.append(self.step(tokens[-1]))
        warm = time.perf_counter()
        for _ in range(steps):
            tokens.append(self.step(tokens[-1]))
        return Turn(prefilled - started, time.perf_counter() - warm, tokens)
