"""The tokens of given answers, which make a model with random weights do the work of a trained model."""

from __future__ import annotations

from collections.abc import Sequence

from lira_engine.bundle.manifest import TokenSpec
from lira_engine.errors import LiraError
from lira_runtime.tokenizer import TextCoder

TASKS = ("refseg", "gcg", "vqa")
LEAD = "Sure, it is"
PHRASES = ("A cup of coffee", "a wooden table", "a spoon")
BETWEEN = " and"
ANSWER = "It is a cup of coffee on a wooden table."


def forced_tokens(task: str, tokens: TokenSpec, tokenizer: TextCoder, ilvc: bool = True) -> list[int]:
    """Return the token ids of an answer to `task`, its stop token last.

    ======  ==========================================================================================
    task    with ILVC; without it
    ======  ==========================================================================================
    refseg  words [SEG] <image_id>, where referring segmentation stops; words [SEG] end
    gcg     three times [SEG] <image_id> phrase </p> [SEG] word, end (" <p>" comes with the region and
            is not decoded); three times <p> phrase </p> [SEG] word, end
    vqa     words end, either way
    ======  ==========================================================================================

    Raises LiraError for a task without a schedule.
    """
    if task not in TASKS:
        raise LiraError(f"there is no schedule for task {task!r}; expected one of {', '.join(TASKS)}")
    end = tokens.eos[0]
    if task == "vqa":
        return [*tokenizer.encode(ANSWER), end]
    if task == "refseg":
        return [*tokenizer.encode(LEAD), tokens.seg, tokens.image_id if ilvc else end]
    ids: list[int] = []
    for phrase in PHRASES:
        ids += _described(tokenizer.encode(phrase), tokens, ilvc) + tokenizer.encode(BETWEEN)
    return [*ids, end]


def _described(phrase: Sequence[int], tokens: TokenSpec, ilvc: bool) -> list[int]:
    """Return the tokens of a phrase and its masks."""
    if ilvc:
        return [tokens.seg, tokens.image_id, *phrase, tokens.p_end, tokens.seg]
    return [tokens.p, *phrase, tokens.p_end, tokens.seg]
