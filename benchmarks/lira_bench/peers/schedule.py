"""The answer that both sides give: its tokens are forced, so that random weights do what trained ones do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lira_bench.speed.schedule import forced_tokens
from lira_engine.bundle.manifest import Manifest

if TYPE_CHECKING:
    from lira_runtime.prompts import Prompt
    from lira_runtime.tokenizer import TextCoder

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
    """A grounded description: the prompt, and the tokens of `lira_bench.speed.schedule`."""
    from lira_runtime.prompts import Question, build_prompt

    prompt = build_prompt(manifest.prompts, manifest.tokens, tokenizer, Question(task=TASK))
    return prompt, forced_tokens(TASK, manifest.tokens, tokenizer)
