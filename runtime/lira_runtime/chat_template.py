"""The base model's chat template, as a bundle spells it: the system turn, and what is around a question."""

from __future__ import annotations

import re

from lira_engine.bundle.manifest import PromptSpec
from lira_engine.errors import LiraError

IMAGE_PLACE = "<image>"
_SYSTEM_TURN = re.compile(r"(<\|im_start\|>system\n)(.*)(<\|im_end\|>)(\s*)", re.DOTALL)


def system_turn(prompts: PromptSpec, text: str | None) -> str:
    """Return the system turn, with `text` in place of the bundle's own if it is not None.

    Raises LiraError if the bundle's turn has another form than that of both families.
    """
    if text is None:
        return prompts.system
    start, _, end, gap = _parts(prompts, "a system text")
    return start + text + end + gap


def first_turn(prompts: PromptSpec, question: str) -> tuple[str, str]:
    """Return a user turn, up to where the answer begins: the texts before and behind the image.

    "<image>" in the question is its place; without it the image comes first, on a line of its own.
    Raises LiraError for two of them.
    """
    start, end = prompts.user.split(IMAGE_PLACE, 1)
    places = question.count(IMAGE_PLACE)
    if places > 1:
        raise LiraError(
            f"the question has <image> {places} times; expected it once, where the picture goes, or never"
        )
    if not places:
        return start, end.replace("{question}", question)
    # upstream puts "<image>\n" before a question that has no <image> of its own
    lead, tail = end.removeprefix("\n").split("{question}", 1)
    left, right = question.split(IMAGE_PLACE)
    return start + lead + left, right + tail


def later_turn(prompts: PromptSpec, question: str) -> str:
    """Return what follows the end token of an answer: a user turn without the image, up to where the next
    answer begins.

    Raises LiraError for a question with "<image>", and as `system_turn` does: between two turns is what
    stands behind the system turn ("" in InternVL2's template for InternLM2, a line break in Qwen2's).
    """
    if IMAGE_PLACE in question:
        raise LiraError("a later question has <image>; expected it in the first turn, which has the picture")
    start, end = prompts.user.split(IMAGE_PLACE, 1)
    gap = _parts(prompts, "a history")[-1]
    return gap + start + end.removeprefix("\n").replace("{question}", question)


def _parts(prompts: PromptSpec, use: str) -> tuple[str, ...]:
    found = _SYSTEM_TURN.fullmatch(prompts.system)
    if found is None:
        raise LiraError(
            f"the bundle's system turn is {prompts.system!r:.80}; expected <|im_start|>system, a line break, "
            f"a text and <|im_end|>: ask without {use}"
        )
    return found.groups()
