"""What the server remembers of its answers: the rows that the loop made.

Clients send a conversation's earlier answers as text, without tags and regions. Where the text is that of an
answer given here, the next question goes on from the rows behind it, which the KV cache may still have. Two
answers may be alike in all that was said, as a description with masks and one without: the last one counts,
unless the client sends the name back that its answer came with.
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
    """The last answers. An answer is known by the picture, and by its name or all that was said before."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._turns: OrderedDict[str, Turn] = OrderedDict()
        self.nbytes = 0

    def remember(self, asked: Asked, answer: str, turn: Turn) -> str:
        """Note what a question's answer was made of; `answer` is its text as the client got it.

        Returns the turn's name, which is its contents' own: nobody learns from it what others asked.
        """
        *_, key = _keys(asked, [*asked.history, Exchange(asked.text, answer)])
        name = f"turn-{hashlib.sha256(repr(turn).encode()).hexdigest()}"
        for place in (key, _named(asked, name)):
            known = self._turns.pop(place, None)
            self._turns[place] = turn
            self.nbytes += _bytes(turn) - (0 if known is None else _bytes(known))
        while self.nbytes > self._most_bytes:
            self.nbytes -= _bytes(self._turns.popitem(last=False)[1])
        return name

    def history(self, asked: Asked) -> tuple[tuple[Turn, ...], int]:
        """Return the turns before a question, and how many of them are read as text."""
        turns, as_text = [], 0
        for said, key in zip(asked.history, _keys(asked, asked.history), strict=True):
            known = None if said.turn is None else self._known(_named(asked, said.turn))
            known = known or self._known(key)
            as_text += known is None
            turns.append(known or Turn(said.question, said.answer))
        return tuple(turns), as_text

    def _known(self, place: str) -> Turn | None:
        if place in self._turns:
            self._turns.move_to_end(place)
        return self._turns.get(place)


def _named(asked: Asked, name: str) -> str:
    """Return the place of a turn about the picture by its name."""
    return f"{asked.digest} {name}"


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
