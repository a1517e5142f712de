"""From a question or a task to the token ids around the image, and to what ends the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lira_engine.bundle.manifest import PromptSpec, TaskSpec, TokenSpec
from lira_engine.errors import LiraError
from lira_runtime.tokenizer import TextCoder

Ilvc = Literal["auto", "on", "off", "plain"]
"""What `<image_id>` does. "auto", "on": the latest mask's region is encoded again and joins the sequence.
"off": the token is never chosen, and a task takes its prompt without ILVC. "plain": it is a token like any
other, as in a language model's own generate(); the paper's authors evaluate VQA, POPE and AttrEval so."""

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


def check_ilvc(ilvc: str) -> Ilvc:
    """Raises LiraError for what is no `Ilvc`."""
    for known in get_args(Ilvc):
        if ilvc == known:
            return known
    raise LiraError(f"ilvc is {ilvc!r}; expected one of {', '.join(get_args(Ilvc))}")


def encodes_regions(ilvc: Ilvc) -> bool:
    """Whether a region joins the sequence at `<image_id>`."""
    return ilvc in ("auto", "on")


def banned_tokens(ilvc: Ilvc, tokens: TokenSpec) -> tuple[int, ...]:
    """The token ids that are never chosen."""
    return (tokens.image_id,) if ilvc == "off" else ()


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

    A question is used as it stands, blanks around it and special tokens in it included: "<image>" is where
    the picture goes (once; without it the picture comes first), "[SEG]" or "</s>" become these tokens. A
    free-form question's answer ends at the bundle's end tokens only. ilvc="off" takes a task's prompt without
    ILVC where the bundle has one (the paper's two prompts, supplementary text, section 6).

    Raises LiraError for an empty question, one with two "<image>", an unknown task, and one with too little
    or too much.
    """
    check_ilvc(ilvc)
    if task is None:
        if expression is not None:
            raise LiraError(f"an expression needs a task; expected task to be one of {_listed(prompts)}")
        text = question or ""
        if not text.strip():
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
        text = expression if expression is not None else question or ""
        if not text.strip():
            raise LiraError(f"task {task} needs an expression; found none, or an empty one")
        label = "" if template == "{expression}" else text.strip()  # a question names no object
        template = template.replace("{expression}", text.lower() if spec.lowercase else text)
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
    # The two sides of <image> are encoded apart, as upstream does it: no token may span the place.
    start, end = prompts.user.split(IMAGE_PLACE, 1)
    places = question.count(IMAGE_PLACE)
    if places > 1:
        raise LiraError(
            f"the question has <image> {places} times; expected it once, where the picture goes, or never"
        )
    if places:  # upstream puts "<image>\n" in front of a question that has no <image> of its own
        lead, tail = end.removeprefix("\n").split("{question}", 1)
        in_front, behind = question.split(IMAGE_PLACE)
        start, end = start + lead + in_front, behind + tail
    else:
        end = end.replace("{question}", question)
    before, after = tokenizer.encode(prompts.system + start), tokenizer.encode(end)
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
