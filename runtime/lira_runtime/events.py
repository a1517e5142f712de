"""What happens in an answer, as the loop yields it: flat, frozen records."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lira_runtime.masks import Mask


@dataclass(frozen=True)
class TokenEvent:
    """A token was chosen.

    `text` is what the token adds to the answer's clean text: no tag, no blank beside a removed tag, no
    incomplete UTF-8 character. The texts of all token events, joined, are `Answer.text`.
    `logprob` is the logarithm of the token's probability, if it was asked for (`Question.logprobs`) and the
    token was chosen, not forced: at temperature 1, among all tokens but those that `ilvc` bans.
    """

    token_id: int
    step: int  # 0 for the first token of the answer
    text: str = ""
    logprob: float | None = None


@dataclass(frozen=True)
class MaskEvent:
    """The LLM read a `[SEG]`, so its mask is known. Accessing the mask waits until it is decoded."""

    index: int  # into Answer.masks
    mask: Mask
    token_step: int  # step of the [SEG] token


@dataclass(frozen=True)
class RegionEvent:
    """`<image_id>` took the latest mask: its region was encoded again and joins the sequence (ILVC)."""

    mask_index: int
    box_xyxy: tuple[int, int, int, int]  # in image pixels, right and bottom exclusive
    tile: np.ndarray  # [1, 3, S, S] float32, the semantic encoder's input
    suffix_ids: tuple[int, ...] = ()  # token ids appended after the region (" <p>")


@dataclass(frozen=True)
class EndEvent:
    """The loop's last event."""

    reason: str  # "stop", or "length": max_new_tokens, or a full KV cache


LoopEvent = TokenEvent | MaskEvent | RegionEvent | EndEvent
