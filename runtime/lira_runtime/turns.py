"""A turn of a conversation: what was asked, and what the language model read of the answer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from lira_engine.errors import LiraError
from lira_runtime import arguments, rle
from lira_runtime.masks import Mask


class Region:
    """The place of a region in an answer: the mask that `<image_id>` took, as COCO run-length encoding.

    A few bytes, from which the region's rows can be made again where the KV cache has them no longer. That of
    an answer is encoded at first use: who asks no later question pays nothing for it. Until then it keeps the
    mask's small logits, not the mask itself, which is as large as the image.
    """

    def __init__(self, size: tuple[int, int], counts: str) -> None:
        """size: height, width."""
        self.size = size
        self._counts: str | None = counts
        self._mask: Callable[[], Mask | None] = _nothing
        self._logits: np.ndarray | None = None

    @classmethod
    def of(cls, mask: Mask) -> Region:
        """Return the region of a mask that was decoded. It is right also when the mask is gone."""
        found = cls((mask.height, mask.width), "")
        found._counts, found._logits, found._mask = None, mask.decoder_logits, weakref.ref(mask)
        return found

    @property
    def counts(self) -> str:
        """The runs, compressed."""
        counts, logits, (height, width) = self._counts, self._logits, self.size
        if counts is None:  # what another thread encoded meanwhile is equal
            assert logits is not None
            counts = self._counts = (self._mask() or Mask(lambda: logits, width, height)).counts
            self._logits = None
        return counts

    @property
    def mask(self) -> np.ndarray:
        """[H, W] bool. Raises LiraError if `counts` do not fill it."""
        return rle.decode({"size": self.size, "counts": self.counts})

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Region):
            return NotImplemented
        return self is other or (self.size == other.size and self.counts == other.counts)

    def __hash__(self) -> int:
        return hash((self.size, self.counts))

    def __repr__(self) -> str:
        return f"Region(size={self.size!r}, counts={self.counts!r})"

    def __reduce__(self) -> tuple[type[Region], tuple[tuple[int, int], str]]:
        return Region, (self.size, self.counts)


def _nothing() -> None:
    """A reference to no mask."""


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
