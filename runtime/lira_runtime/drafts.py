"""Draft and verify: a pass also reads tokens that are likely to follow, which then need no pass of their own.

The loop knows nothing of it. A row that was read ahead gives what the loop asks for if the loop reads just
this row next, and is dropped otherwise. So tokens may be chosen in any way: greedily, by a sampler, by force.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from lira_engine.engines.runner import KvCache, LlmOutput
from lira_engine.errors import LiraError
from lira_runtime.loop import Embed, Llm
from lira_runtime.timings import Timings

Draft = Literal["auto", "off"]
"""Whether answers are drafted: "auto" where it pays on these engines; never by engines in fp32, whose results
would differ in their last bits."""

_LONGEST = 3  # tokens by which a place in a text is known again
_USUAL = 8  # as how often what is usual counts


def check_draft(draft: str) -> Draft:
    """Return `draft`. Raises LiraError if it is no `Draft`."""
    for known in get_args(Draft):
        if draft == known:
            return known
    raise LiraError(f"draft is {draft!r}; expected one of {', '.join(get_args(Draft))}")


@dataclass
class _Forecast:
    """The token that followed a run of tokens last time. `tried` times it was forecast, `right` times it
    came."""

    token: int
    right: int = 0
    tried: int = 0


class Memory:
    """What followed what in a question and its answer, and follows in all answers."""

    def __init__(self, usual: Sequence[int] = ()) -> None:
        """`usual`: tokens that follow each other wherever the first of them is."""
        self._after = {
            tuple(usual[:end]): _Forecast(usual[end], _USUAL, _USUAL)
            for end in range(1, min(len(usual), _LONGEST + 1))
        }
        self._in_a_row = 0  # right forecasts, up to the last token

    def learn(self, text: Sequence[int], token: int, chosen: bool) -> None:
        """Learn that `token` followed `text`; `chosen`: by the language model, so that forecasts count."""
        right = False
        for run in _runs(text):
            forecast = self._after.get(run)
            if forecast is None:
                self._after[run] = _Forecast(token)
                continue
            right = forecast.token == token  # in the end that of the longest run, which decides
            forecast.right += chosen and right
            forecast.tried += chosen
            forecast.token = token
        self._in_a_row = self._in_a_row + 1 if right else 0

    def next(self, text: Sequence[int]) -> tuple[int | None, float]:
        """Return the token that is likeliest to follow, and its chance; None where nothing is known.

        The longest run of last tokens that was seen before decides, by what followed it then. The chance is
        the share of its forecasts that were right, with one vote more: the share of late forecasts, or the
        chance by a shorter run if that says the same.
        """
        token, chance = None, 0.0
        late = (self._in_a_row + 1) / (self._in_a_row + 5)
        for run in _runs(text):
            forecast = self._after.get(run)
            if forecast is not None:
                vote = max(late, chance) if forecast.token == token else late
                token, chance = forecast.token, (forecast.right + vote) / (forecast.tried + 1)
        return token, chance


def _runs(text: Sequence[int]) -> list[tuple[int, ...]]:
    """The last tokens of a text, the shortest run first."""
    return [tuple(text[-length:]) for length in range(1, min(_LONGEST, len(text)) + 1)]


class DraftingLlm:
    """The language model of one answer, which reads ahead where that is likely to pay."""

    def __init__(
        self,
        llm: Llm,
        costs: Sequence[float],  # of 1, 2, ... rows more in a pass (`Engines.draft_costs`)
        embed: Embed,
        memory: Memory,
        unread: Collection[int],  # tokens that end an answer or bring rows of their own: not read ahead
        timings: Timings,
    ) -> None:
        self._llm = llm
        self._costs = costs
        self._embed = embed
        self._memory = memory
        self._unread = unread
        self._timings = timings
        self._text: list[int] = []  # the last tokens
        self._ahead: list[tuple[np.ndarray, LlmOutput]] = []  # rows [C] that the cache has already

    def note(self, token_ids: Sequence[int], chosen: bool) -> None:
        """Take note of the tokens that the loop reads next; `chosen`: by the language model."""
        for token in token_ids if self._costs else ():
            self._memory.learn(self._text, token, chosen)
            self._text = [*self._text[1 - _LONGEST :], token]

    def forward(
        self, embeds: np.ndarray, cache: KvCache, logit_positions: Sequence[int] = (-1,)
    ) -> LlmOutput:
        """As `LlmRunner.forward`, at the last row alone. `cache` may hold rows beyond those it was given."""
        assert tuple(logit_positions) == (-1,), logit_positions
        if self._ahead and len(embeds) == 1 and np.array_equal(embeds[0], self._ahead[0][0]):
            self._timings.accepted += 1
            return self._ahead.pop(0)[1]
        cache.truncate(cache.length - len(self._ahead))
        self._ahead = []
        drafted = self._draft(cache.capacity - cache.length - len(embeds))
        if not drafted:
            return self._llm.forward(embeds, cache, logit_positions)
        rows = self._embed(drafted)  # [n, C]
        output = self._llm.forward(np.concatenate([embeds, rows]), cache, range(-1 - len(drafted), 0))
        asked, *ahead = (
            LlmOutput(output.logits[i : i + 1], output.hidden[i : i + 1]) for i in range(1 + len(drafted))
        )
        self._ahead = list(zip(rows, ahead, strict=True))
        self._timings.drafted += len(drafted)
        return asked

    def _draft(self, room: int) -> list[int]:
        """Return the tokens to read ahead, at most `room`: those that save most passes, less their cost."""
        text, drafted, best = self._text, [], 0
        chance, saved, most = 1.0, 0.0, 0.0
        for cost in self._costs[: max(room, 0)]:
            token, share = self._memory.next(text)
            if token is None or token in self._unread:
                break
            drafted.append(token)
            text = [*text[1 - _LONGEST :], token]
            chance *= share
            saved += chance
            if saved - cost > most:
                best, most = len(drafted), saved - cost
        return drafted[:best]
