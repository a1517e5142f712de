"""The autoregressive loop: Algorithm 1 of the LIRA paper (supplementary text, section 8).

The numbers in the margin are the algorithm's lines. What it does at `<seg>` and `<image_id>` is in two
callbacks (callbacks.py): the loop itself knows no special token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from lira_engine.engines.runner import KvCache, LlmOutput
from lira_engine.errors import ContextFull
from lira_runtime.events import EndEvent, LoopEvent, TokenEvent

Embed = Callable[[Sequence[int]], np.ndarray]
"""Token ids [n] -> embeddings [n, C]."""


class Llm(Protocol):
    """The part of a `lira_engine.engines.runner.LlmRunner` that the loop uses."""

    def forward(
        self, embeds: np.ndarray, cache: KvCache, logit_positions: Sequence[int] = ...
    ) -> LlmOutput: ...


class TokenCallback:
    """What happens at one token id, and the events of that. Override what is needed."""

    def on_chosen(self, step: int) -> tuple[Sequence[LoopEvent], np.ndarray | None]:
        """The token was chosen at `step`. Also returns embeddings [R, C] to read right after it, or None."""
        return (), None

    def on_consumed(self, output: LlmOutput, step: int) -> Sequence[LoopEvent]:
        """The LLM read the token that was chosen at `step`; `output` is of that pass."""
        return ()


def generate(
    llm: Llm,
    cache: KvCache,
    prompt: np.ndarray,  # [S, C], the rows that `cache` does not hold yet
    embed: Embed,
    choose: Callable[[np.ndarray], int],  # logits [V] -> token id
    stop_ids: Collection[int],
    max_new_tokens: int,
    callbacks: Mapping[int, TokenCallback],
    forced: Mapping[int, int] | None = None,  # step -> token id, to replay a recorded answer
) -> Iterator[LoopEvent]:
    """Yield the answer's events; the last is EndEvent.

    A token's `on_consumed` comes one step after its `on_chosen`: LIRA makes a mask from the hidden state of
    the pass that *reads* `[SEG]`, not of the pass that predicts it. So a `[SEG]` chosen last makes no mask.
    """
    forced = forced or {}
    chunk, token = prompt, -1  # 2  S <- {f_g, T_ins}
    for step in range(max_new_tokens):  # 4  while not end-of-generation
        try:
            output = llm.forward(chunk, cache, logit_positions=(-1,))
        except ContextFull:
            break
        consumed, token = token, forced[step] if step in forced else choose(output.logits[-1])
        yield TokenEvent(token, step)  # 5  token <- LLM.generate(S)
        if consumed in callbacks:  # 8-10  <seg>: M_current
            yield from callbacks[consumed].on_consumed(output, step - 1)
        if token in stop_ids:  # 6-7  <eos>: break
            yield EndEvent("stop")
            return
        chunk = embed([token])  # 11, 15, 18  S <- S + token
        if token in callbacks:  # 12-14  <image_id>: f_l
            events, appended = callbacks[token].on_chosen(step)
            yield from events
            if appended is not None:  # 16  S <- S + f_l
                chunk = np.concatenate([chunk, appended])
    yield EndEvent("length")
