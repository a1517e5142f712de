"""A held-out question, with the answer of fp32 to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lira_engine.engines.recipe import MEND
from lira_engine.errors import LiraError


@dataclass(frozen=True)
class Question:
    """A question with its forced answer, and what fp32 makes of it.

    Attributes:
        picture: file in the folder. upright: whether it is turned by its EXIF orientation. task, text: see
            lira_runtime.prompts.Question.
        tokens: the answer. expected: the tokens that fp32 chooses in its places.
        given: the mask of each `[SEG]`, in COCO's run-length encoding, whose region is encoded at the
            `<image_id>` behind it. annotated: they are the true masks. fp32: the masks that fp32 makes.
        shown: numbers of the masks that an answer shows.
    """

    key: str
    picture: str
    upright: bool
    task: str
    text: str | None
    tokens: tuple[int, ...]
    expected: tuple[int, ...]
    given: tuple[dict[str, Any], ...] = ()
    annotated: bool = False
    fp32: tuple[dict[str, Any], ...] = ()
    shown: tuple[int, ...] = ()

    def check(self, where: str) -> None:
        """Raises LiraError, which begins with `where`, if the parts do not fit each other."""
        if not self.tokens or len(self.tokens) != len(self.expected):
            raise LiraError(f"{where}: {len(self.tokens)} tokens and {len(self.expected)} of fp32: {MEND}")
        if len(self.given) != len(self.fp32) or any(not 0 <= n < len(self.fp32) for n in self.shown):
            raise LiraError(f"{where}: {len(self.given)} masks and {len(self.fp32)} of fp32: {MEND}")
