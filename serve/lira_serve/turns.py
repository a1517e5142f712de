"""What the server remembers of its answers: the rows that the loop made.

Clients send a conversation's earlier answers as text, without tags and regions. Where the text is that of an
answer given here, the next question goes on from the rows behind it, which the KV cache may still have.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence

from lira_runtime.turns import Region, Turn
from lira_serve.asked import Asked, Exchange

_MOST_BYTES = 64 << 20  # a region of a large photograph takes some kilobytes


class TurnMemory:
    """The last answers. An answer is known by the picture and all that was said about it before."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._turns: OrderedDict[str, Turn] = OrderedDict()  # the least recently used first
        self.nbytes = 0

    def remember(self, asked: Asked, answer: str, turn: Turn) -> None:
        """Note what a question's answer was made of; `answer` is its text as the client got it."""
        key = _key(asked, [*asked.history, Exchange(asked.text, answer)])
        if key in self._turns:
            self.nbytes -= _bytes_of(self._turns.pop(key))
        self._turns[key] = turn
        self.nbytes += _bytes_of(turn)
        while self.nbytes > self._most_bytes:
            self.nbytes -= _bytes_of(self._turns.popitem(last=False)[1])

    def history(self, asked: Asked) -> tuple[tuple[Turn, ...], int]:
        """Return the turns before a question, and how many of them are read as text."""
        turns, as_text = [], 0
        for number, said in enumerate(asked.history, 1):
            key = _key(asked, asked.history[:number])
            known = self._turns.get(key)
            if known is not None:
                self._turns.move_to_end(key)
            as_text += known is None
            turns.append(known or Turn(said.question, said.answer))
        return tuple(turns), as_text


def _key(asked: Asked, said: Sequence[Exchange]) -> str:
    parts = [asked.digest, asked.system, *([one.question, one.answer] for one in said)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _bytes_of(turn: Turn) -> int:
    """Return about what a turn takes: its texts, runs of masks and token ids, and its place here."""
    texts = [turn.question, turn.answer] if isinstance(turn.answer, str) else [turn.question]
    pieces = () if isinstance(turn.answer, str) else turn.answer
    regions = [piece.counts for piece in pieces if isinstance(piece, Region)]
    return 512 + 32 * len(pieces) + sum(map(len, [*texts, *regions]))
