"""A question as the server hands it to whoever answers: plain data, also for another process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from PIL.Image import Image

from lira_runtime.prompts import Question

Event = Mapping[str, Any]
"""What happened in an answer: plain data with a `type` (see docs/serve.md), ready for JSON."""


@dataclass(frozen=True)
class Exchange:
    """An earlier question and its answer, as the client sent them.

    turn: the name that the answer came with (`lira.turn`), if the client sent that too.
    """

    question: str
    answer: str
    turn: str | None = None


@dataclass(frozen=True)
class Asked:
    """A question about an image.

    digest: SHA-256 of the image (`pictures.picture_digest`). text: the question as the client wrote it.
    history: the conversation before it. system: replaces the bundle's system text. attributes: words to rank
    at every mask. stop: texts that end the answer. logprobs: each token comes with its log-probability.
    """

    image: Image
    digest: str
    question: Question
    text: str
    max_tiles: int | None = None
    history: tuple[Exchange, ...] = ()
    system: str | None = None
    attributes: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    logprobs: bool = False


class Answering(Protocol):
    """An answer on its way. Iterate over it for its events."""

    def __aiter__(self) -> AsyncIterator[Event]: ...

    def hold(self) -> None:
        """Nobody wants events before the last one: they may all come together."""
        ...

    def cancel(self) -> None:
        """Nobody wants the rest: whoever answers stops within one token."""
        ...


class Answerer(Protocol):
    """Whoever answers: the engines' thread of this process, or other processes."""

    @property
    def ready(self) -> bool: ...

    @property
    def waiting(self) -> int: ...

    @property
    def answering(self) -> int: ...

    def check_room(self) -> None:
        """Raises ApiError (503) if a question could not be taken now."""
        ...

    def submit(self, asked: Asked) -> Answering:
        """Take a question. Raises ApiError (503) if too many wait."""
        ...
