"""The answer of both sides, with given tokens, so that random weights do the work of trained ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lira_bench.forced import forced_tokens
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import Manifest

if TYPE_CHECKING:
    from lira_runtime.prompts import Prompt
    from lira_runtime.tokenizer import TextCoder

TASK = "gcg"
QUESTION = "What is in the image?"
QUERIES = 16  # valid object queries, a row each: their number depends on the image


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


def prompt_rows(bundle: Bundle) -> int:
    """Return the rows of a question about an image of the most tiles: LIRA-2B's are about 2,100."""
    from lira_runtime.prompts import Question, build_prompt
    from lira_runtime.tokenizer import Tokenizer

    manifest = bundle.manifest
    model, tile = manifest.model, manifest.preprocessing.tile
    coder = Tokenizer(bundle.tokenizer_file)
    prompt = build_prompt(manifest.prompts, manifest.tokens, coder, Question(QUESTION))
    tiles = tile.max_num + (tile.use_thumbnail and tile.max_num > 1)
    image = tiles * model.tokens_per_tile + model.num_cells + min(QUERIES, model.num_queries)
    separators = 2
    return len(prompt.before) + image + separators + len(prompt.after)
