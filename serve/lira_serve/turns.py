"""What the server remembers of its answers: the rows that the loop made.

Clients send a conversation's earlier answers as text, without tags and regions. Where the text is that of an
answer given here, the next question goes on from the rows behind it, which the KV cache may still have.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence

from lira_runtime.turns import Turn
from lira_serve.asked import Asked, Exchange

_MOST_TURNS = 10_000  # of a few kilobytes


class TurnMemory:
    """The last answers. An answer is known by the picture and all that was said about it before."""

    def __init__(self, most_turns: int = _MOST_TURNS) -> None:
        self._most_turns = most_turns
        self._turns: OrderedDict[str, Turn] = OrderedDict()

    def remember(self, asked: Asked, answer: str, turn: Turn) -> None:
        """Note what a question's answer was made of; `answer` is its text as the client got it."""
        key = _key(asked, [*asked.history, Exchange(asked.text, answer)])
        self._turns[key] = turn
        self._turns.move_to_end(key)
        while len(self._turns) > self._most_turns:
            self._turns.popitem(last=False)

    def history(self, asked: Asked) -> tuple[tuple[Turn, ...], int]:
        """Return the turns before a question, and how many of them are read as text."""
        turns, as_text = [], 0
        for number, said in enumerate(asked.history, 1):
            known = self._turns.get(_key(asked, asked.history[:number]))
            if known is not None:
                self._turns.move_to_end(_key(asked, asked.history[:number]))
            as_text += known is None
            turns.append(known or Turn(said.question, said.answer))
        return tuple(turns), as_text


def _key(asked: Asked, said: Sequence[Exchange]) -> str:
    parts = [asked.digest, asked.system, *([one.question, one.answer] for one in said)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
