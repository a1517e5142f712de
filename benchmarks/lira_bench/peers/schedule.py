"""The answer of both sides, with given tokens, so that random weights do the work of trained ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lira_bench.forced import forced_tokens
from lira_engine.bundle.manifest import Manifest

if TYPE_CHECKING:
    from lira_runtime.prompts import Prompt
    from lira_runtime.tokenizer import TextCoder

TASK = "gcg"


@dataclass(frozen=True)
class Answered:
    """One answer, from the image file to masks of the image's size.

    Attributes:
        seconds: of the whole answer. stages: seconds by stage, summed over the answer.
        decode_ms: mean of the decode steps.
        mask_pixels: number of true pixels of each mask.
    """

    seconds: float
    prefill_tokens: int
    new_tokens: int
    decode_ms: float
    stages: dict[str, float]
    mask_pixels: list[int]


def forced_answer(manifest: Manifest, tokenizer: TextCoder) -> tuple[Prompt, list[int]]:
    """Return the prompt of a grounded description and its tokens, from `lira_bench.forced`."""
    from lira_runtime.prompts import Question, build_prompt

    prompt = build_prompt(manifest.prompts, manifest.tokens, tokenizer, Question(task=TASK))
    return prompt, forced_tokens(TASK, manifest.tokens, tokenizer)
