"""From a question or a task to the token ids around the image, and to what ends the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lira_engine.errors import LiraError
from lira_engine.manifest import PromptSpec, TaskSpec, TokenSpec
from lira_runtime.tokenizer import TextCoder

Ilvc = Literal["auto", "on", "off"]

IMAGE_PLACE = "<image>"
FREE_FORM_MAX_NEW_TOKENS = 512  # upstream's demo


@dataclass(frozen=True)
class Prompt:
    """`before` and `after` surround the visual prefix.

    `question` is what they ask, in words; `label` names a mask that the answer itself does not name.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    stop_ids: frozenset[int]
    max_new_tokens: int
    question: str = ""
    label: str = ""


def build_prompt(
    prompts: PromptSpec,
    tokens: TokenSpec,
    tokenizer: TextCoder,
    *,
    question: str | None = None,
    task: str | None = None,
    expression: str | None = None,
    ilvc: Ilvc = "auto",
) -> Prompt:
    """A free-form `question`, or a `task` of the bundle with what its template needs.

    A free-form question is used as it stands; its answer ends at the end-of-turn token only. ilvc="off" takes
    a task's prompt without ILVC where the bundle has one (the paper's two prompts, supplementary text,
    section 6). Raises LiraError for an empty question, an unknown task, and one with too little or too much.
    """
    if ilvc not in get_args(Ilvc):
        raise LiraError(f"ilvc is {ilvc!r}; expected one of {', '.join(get_args(Ilvc))}")
    if task is None:
        if expression is not None:
            raise LiraError(f"an expression needs a task; expected task to be one of {_listed(prompts)}")
        text = (question or "").strip()
        if not text:
            raise LiraError("the question is empty; expected some text, or a task")
        return _assemble(
            prompts, tokens, tokenizer, text, frozenset(tokens.eos), FREE_FORM_MAX_NEW_TOKENS, ""
        )

    if task not in prompts.tasks:
        raise LiraError(f"there is no task {task!r} in this bundle; expected one of {_listed(prompts)}")
    spec = prompts.tasks[task]
    template = spec.question
    if ilvc == "off" and spec.question_without_ilvc is not None:
        template = spec.question_without_ilvc
    label = ""
    if "{expression}" in template:
        if question is not None and expression is not None:
            raise LiraError(f"task {task} takes one text; found a question and an expression")
        label = (expression if expression is not None else question or "").strip()
        if not label:
            raise LiraError(f"task {task} needs an expression; found none, or an empty one")
        if template == "{expression}":  # a question, which names no object
            template, label = label.lower() if spec.lowercase else label, ""
        else:
            template = template.replace("{expression}", label.lower() if spec.lowercase else label)
    elif question is not None or expression is not None:
        raise LiraError(f"task {task} has its own question; found another text beside it: leave it out")
    stop_ids = frozenset(tokens.eos) | {_stop_id(name, spec, tokens, tokenizer) for name in spec.stop}
    return _assemble(prompts, tokens, tokenizer, template, stop_ids, spec.max_new_tokens, label)


def _assemble(
    prompts: PromptSpec,
    tokens: TokenSpec,
    tokenizer: TextCoder,
    question: str,
    stop_ids: frozenset[int],
    max_new_tokens: int,
    label: str,
) -> Prompt:
    # The two sides of <image> are encoded apart, as upstream does it: no token may span the place. The
    # template is cut before the question goes in, so that "<image>" in a question is text like any other.
    turn_start, turn_end = prompts.user.split(IMAGE_PLACE, 1)
    before = tokenizer.encode(prompts.system + turn_start)
    after = tokenizer.encode(turn_end.replace("{question}", question))
    if prompts.add_bos:
        before = [tokens.bos, *before]
    return Prompt(tuple(before), tuple(after), stop_ids, max_new_tokens, question, label)


def _stop_id(name: str, spec: TaskSpec, tokens: TokenSpec, tokenizer: TextCoder) -> int:
    if name == "<image_id>":
        return tokens.image_id
    token_id = tokenizer.id_of(name)
    if token_id is None:
        raise LiraError(
            f"the bundle's tokenizer has no token {name!r}, at which {spec.question!r} is to stop"
        )
    return token_id


def _listed(prompts: PromptSpec) -> str:
    return ", ".join(sorted(prompts.tasks))
