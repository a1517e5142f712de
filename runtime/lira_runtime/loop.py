"""The autoregressive loop: Algorithm 1 of the LIRA paper (supplementary text, section 8).

The numbers in the margin are the algorithm's lines. What the algorithm does at `<seg>` and `<image_id>` is
not written here but in two callbacks (callbacks.py): the loop itself knows no special token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lira_engine.errors import ContextFull
from lira_runtime.events import Event, TokenEvent

if TYPE_CHECKING:
    from lira_engine.engines.runner import KvCache, LlmOutput


class Llm(Protocol):
    """What the loop needs of a `lira_engine.engines.runner.LlmRunner`."""

    def forward(
        self, embeds: np.ndarray, cache: KvCache, logit_positions: Sequence[int] = ...
    ) -> LlmOutput: ...


class TokenCallback:
    """What happens at one token id. Both methods are generators of events; override what is needed."""

    def on_chosen(self, step: int) -> Generator[Event, None, np.ndarray | None]:
        """The token was chosen at `step`. Returns embeddings [R, C] that follow it in its pass, or None."""
        return None
        yield

    def on_consumed(self, output: LlmOutput, step: int) -> Generator[Event, None, None]:
        """The token (chosen at `step`) was the LLM's input, and `output` is what that pass gave."""
        return
        yield


def generate(
    llm: Llm,
    cache: KvCache,
    prompt: np.ndarray,  # [S, C], what `cache` does not hold yet
    embed: Callable[[Sequence[int]], np.ndarray],  # token ids -> [n, C]
    choose: Callable[[np.ndarray], int],  # logits [V] -> token id
    stop_ids: Collection[int],
    max_new_tokens: int,
    callbacks: Mapping[int, TokenCallback],
    forced: Mapping[int, int] | None = None,  # step -> token id, to replay a recorded answer
) -> Generator[Event, None, str]:
    """Yields the answer's events; returns why it ended: "stop", or "length" (max_new_tokens or a full cache).

    A token's `on_consumed` comes one step after its `on_chosen`: LIRA makes a mask from the hidden state of
    the pass that *reads* `[SEG]`, not of the pass that predicts it. So a `[SEG]` chosen last makes no mask.
    """
    forced = forced or {}
    chunk, token = prompt, -1  # 2  S <- {f_g, T_ins}
    for step in range(max_new_tokens):  # 4  while not end-of-generation
        try:
            output = llm.forward(chunk, cache, logit_positions=(-1,))
        except ContextFull:
            return "length"
        consumed, token = token, forced[step] if step in forced else choose(output.logits[-1])
        yield TokenEvent(token, step)  # 5  token <- LLM.generate(S)
        if consumed in callbacks:  # 8-10  <seg>: M_current
            yield from callbacks[consumed].on_consumed(output, step - 1)
        if token in stop_ids:  # 6-7  <eos>: break
            return "stop"
        appended = None
        if token in callbacks:  # 12-14  <image_id>: f_l
            appended = yield from callbacks[token].on_chosen(step)
        chunk = embed([token])  # 11, 15, 18  S <- S + token
        if appended is not None:  # 16  S <- S + f_l
            chunk = np.concatenate([chunk, appended])
    return "length"
