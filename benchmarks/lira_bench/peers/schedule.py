"""The answer that both sides give: its tokens are forced, so that random weights do what trained ones do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lira_engine.manifest import Manifest

if TYPE_CHECKING:
    from lira_runtime.prompts import Prompt
    from lira_runtime.tokenizer import TextCoder

PHRASES = ("A cup of coffee", "a wooden table")
BETWEEN = " and"
QUESTION = "What is in the image?"
TASK = "gcg"


@dataclass(frozen=True)
class Answered:
    """One answer, from the image's file to its masks in the size of the image.

    Attributes:
        seconds: all of it. stages: seconds by stage, summed over the answer.
        decode_ms: mean of the passes that read one token.
        mask_pixels: of each mask, how many belong to the object.
    """

    seconds: float
    prefill_tokens: int
    new_tokens: int
    decode_ms: float
    stages: dict[str, float]
    mask_pixels: list[int]


def forced_answer(manifest: Manifest, tokenizer: TextCoder) -> tuple[Prompt, list[int]]:
    """A grounded description in the form of a trained one: per phrase ``[SEG] <image_id> phrase </p> [SEG]``
    and a word, then the end of the turn. " <p>" comes with the region and is not decoded."""
    from lira_runtime.prompts import build_prompt

    tokens = manifest.tokens
    has_task = TASK in manifest.prompts.tasks
    prompt = build_prompt(
        manifest.prompts,
        tokens,
        tokenizer,
        question=None if has_task else QUESTION,
        task=TASK if has_task else None,
    )
    ids: list[int] = []
    for phrase in PHRASES:
        ids += [tokens.seg, tokens.image_id, *tokenizer.encode(phrase), tokens.p_end, tokens.seg]
        ids += tokenizer.encode(BETWEEN)
    return prompt, [*ids, tokens.eos[0]]
