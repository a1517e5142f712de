"""Which replica has a picture."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Generic, TypeVar

R = TypeVar("R")  # a replica's id


class Homes(Generic[R]):
    """A picture's home is the replica that was asked about it: it has the scene, and the answers so far.

    A replica that has gone takes its pictures along: each gets another home with its next question. Hashing
    would need no memory, but could not look at how busy a replica is.
    """

    def __init__(self, most_pictures: int = 10_000) -> None:
        self._most_pictures = most_pictures
        self._homes: OrderedDict[str, R] = OrderedDict()  # the least recently asked about first

    def of(self, digest: str, questions: Mapping[R, int]) -> R:
        """Return a picture's home. A new picture gets the least busy replica; of these, the one with the
        fewest pictures.

        questions: how many each living replica has, which must be at least one replica.
        """
        home = self._homes.pop(digest, None)
        if home is None or home not in questions:
            pictures = Counter(self._homes.values())
            home = min(questions, key=lambda replica: (questions[replica], pictures[replica]))
        self._homes[digest] = home
        if len(self._homes) > self._most_pictures:
            self._homes.popitem(last=False)
        return home
