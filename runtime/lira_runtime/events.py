"""What the loop says while it runs: flat, frozen records in the order in which things happen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from lira_runtime.answer import Answer
    from lira_runtime.masks import Mask


@dataclass(frozen=True)
class TokenEvent:
    """A token was chosen.

    `text` is what it adds to the clean text: no tags, no space that a removed tag leaves behind, no half
    of a UTF-8 character. The texts of all token events, joined, are the answer's `text`.
    """

    token_id: int
    step: int  # 0 is the first token of the answer
    text: str = ""


@dataclass(frozen=True)
class MaskEvent:
    """A `[SEG]` went through the LLM, so its mask is known; who looks at it waits for its decoding."""

    index: int  # place in Answer.masks
    mask: Mask
    token_step: int  # step of the [SEG] token


@dataclass(frozen=True)
class RegionEvent:
    """`<image_id>` took the latest mask: its region was encoded again and joins the sequence (ILVC)."""

    mask_index: int
    box_xyxy: tuple[int, int, int, int]  # in image pixels, right and bottom exclusive
    tile: np.ndarray  # [1, 3, S, S] float32, what the semantic encoder saw
    suffix_ids: tuple[int, ...] = ()  # token ids appended after the region (" <p>")


@dataclass(frozen=True)
class FinishedEvent:
    """The answer is complete."""

    answer: Answer


Event = TokenEvent | MaskEvent | RegionEvent | FinishedEvent
