"""A turn of a conversation: what was asked, and what the language model read of the answer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lira_engine.errors import LiraError
from lira_runtime import arguments, rle


@dataclass(frozen=True)
class Region:
    """The place of a region in an answer: the mask that `<image_id>` took, as COCO run-length encoding.

    A few bytes, from which the region's rows can be made again where the KV cache has them no longer.
    """

    size: tuple[int, int]  # height, width
    counts: str

    @classmethod
    def of(cls, mask: np.ndarray) -> Region:
        """Return the region of a mask [H, W] bool."""
        encoded = rle.encode(mask)
        height, width = encoded["size"]
        return cls((height, width), encoded["counts"])

    @property
    def mask(self) -> np.ndarray:
        """[H, W] bool. Raises LiraError if `counts` do not fill it."""
        return rle.decode({"size": self.size, "counts": self.counts})


Piece = int | Region
"""A token id, or what stands for the rows of a region."""


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation, small enough to keep thousands. `Answer.turn` makes one.

    Attributes:
        question: as it stands in the prompt (`Prompt.question`), not the task that it was asked by.
        answer: the pieces that the loop read: the chosen token ids without the one that ended the answer, and
            at its place each region, with the token ids that follow it. Or a text, where only that is known:
            it is read as it stands, without regions.
    """

    question: str
    answer: str | tuple[Piece, ...]

    def __post_init__(self) -> None:
        arguments.text("a turn's question", self.question)
        if not isinstance(self.answer, tuple):
            arguments.text("a turn's answer", self.answer)

    @property
    def regions(self) -> list[Region]:
        if isinstance(self.answer, str):
            return []
        return [piece for piece in self.answer if isinstance(piece, Region)]


def checked_history(history: object) -> tuple[Turn, ...]:
    """Return the turns of a conversation. Raises LiraError for anything else."""
    if isinstance(history, Iterable) and not isinstance(history, str):
        turns = tuple(history)
        if all(isinstance(turn, Turn) for turn in turns):
            return turns
    raise LiraError(f"history is {history!r:.60}; expected turns (answer.turn, or Turn(question, text))")
