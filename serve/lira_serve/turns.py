"""What the server remembers of its answers: the rows that the loop made.

Clients send a conversation's earlier answers as text, without tags and regions. Where the text is that of an
answer given here, the next question goes on from the rows behind it, which the KV cache may still have.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from lira_runtime.turns import Turn
from lira_serve.asked import Asked, Exchange

_MOST_BYTES = 64 << 20  # a turn takes a few kilobytes, but may have a long question or ragged masks
_PIECE_BYTES = 64
_PLACE_BYTES = 512  # its key, and its place in the table


class TurnMemory:
    """The last answers. An answer is known by the picture and all that was said about it before."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._turns: OrderedDict[str, Turn] = OrderedDict()
        self.nbytes = 0

    def remember(self, asked: Asked, answer: str, turn: Turn) -> None:
        """Note what a question's answer was made of; `answer` is its text as the client got it."""
        *_, key = _keys(asked, [*asked.history, Exchange(asked.text, answer)])
        known = self._turns.pop(key, None)
        self._turns[key] = turn
        self.nbytes += _bytes(turn) - (0 if known is None else _bytes(known))
        while self.nbytes > self._most_bytes:
            self.nbytes -= _bytes(self._turns.popitem(last=False)[1])

    def history(self, asked: Asked) -> tuple[tuple[Turn, ...], int]:
        """Return the turns before a question, and how many of them are read as text."""
        turns, as_text = [], 0
        for said, key in zip(asked.history, _keys(asked, asked.history), strict=True):
            known = self._turns.get(key)
            if known is not None:
                self._turns.move_to_end(key)
            as_text += known is None
            turns.append(known or Turn(said.question, said.answer))
        return tuple(turns), as_text


def _keys(asked: Asked, said: Sequence[Exchange]) -> Iterator[str]:
    """Yield the key of each exchange: of the picture, and all that was said up to there."""
    digest = hashlib.sha256(json.dumps([asked.digest, asked.system]).encode())
    for one in said:
        digest.update(json.dumps([one.question, one.answer]).encode())
        yield digest.hexdigest()


def _bytes(turn: Turn) -> int:
    """Return about how many bytes a turn takes."""
    pieces = sys.getsizeof(turn.answer) if isinstance(turn.answer, str) else _PIECE_BYTES * len(turn.answer)
    runs = sum(len(region.counts) for region in turn.regions)
    return _PLACE_BYTES + sys.getsizeof(turn.question) + pieces + runs
