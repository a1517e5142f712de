"""From a question or a task to the token ids around the image, and to what ends the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypedDict, get_args

from lira_engine.bundle.manifest import PromptSpec, TaskSpec, TokenSpec
from lira_engine.errors import LiraError
from lira_runtime import arguments
from lira_runtime.chat_template import first_turn, later_turn, system_turn
from lira_runtime.sampling import Sampler, ScoringSampler, make_sampler
from lira_runtime.tokenizer import TextCoder
from lira_runtime.turns import Piece, Turn, checked_history

if TYPE_CHECKING:
    from typing_extensions import Unpack  # not installed on every device

Ilvc = Literal["auto", "on", "off", "plain"]
"""What `<image_id>` does. "auto", "on": the latest mask's region is encoded again and joins the sequence.
"off": the token is never chosen, and a task takes its prompt without ILVC. "plain": it is a token like any
other, as in a language model's own generate(); the paper's authors evaluate VQA, POPE and AttrEval so."""

FREE_FORM_MAX_NEW_TOKENS = 512  # upstream's demo


class QuestionOptions(TypedDict, total=False):
    """The fields of Question behind its first one, as keywords of `ask` and `stream`."""

    task: str | None
    expression: str | None
    ilvc: Ilvc
    max_new_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    history: Sequence[Turn]
    system: str | None
    logprobs: bool


@dataclass(frozen=True)
class Question:
    """What to ask about an image, and how to choose the answer's tokens. Raises LiraError for bad values.

    Attributes:
        question: a free-form question, or the text that `task` needs.
        task: a task of the bundle: refseg, gcg, vqa, caption.
        expression: the text that `task` needs, where there is no `question`.
        ilvc: what `<image_id>` does (see `Ilvc`).
        max_new_tokens: of the answer; None takes the task's, or 512.
        temperature: 0 is greedy.
        top_p: samples from the likeliest tokens that hold this share of the probability.
        top_k: samples from so many tokens; 0 from all.
        seed: makes sampling repeatable.
        history: the turns before this one, the first of which has the image.
        system: the text of the system turn; None takes the bundle's.
        logprobs: whether token events say how likely their tokens were.
    """

    question: str | None = None
    task: str | None = None
    expression: str | None = None
    ilvc: Ilvc = "auto"
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    history: Sequence[Turn] = ()
    system: str | None = None
    logprobs: bool = False

    @classmethod
    def of(cls, question: Question | str | None, **options: Unpack[QuestionOptions]) -> Question:
        """Return `question` as it is or from its text, with other fields as in `options`."""
        if isinstance(question, Question):
            return replace(question, **options)
        return cls(question, **options)

    def __post_init__(self) -> None:
        arguments.optional_whole("max_new_tokens", self.max_new_tokens, "1 or more", 1)
        arguments.optional_text("the question", self.question)
        arguments.optional_text("the task", self.task)
        arguments.optional_text("the expression", self.expression)
        arguments.optional_text("the system text", self.system)
        object.__setattr__(self, "history", checked_history(self.history))
        check_ilvc(self.ilvc)
        if self.task is None and self.expression is None and not (self.question or "").strip():
            raise LiraError('the question is empty; expected some text (--ask "..."), or a task (--task)')
        make_sampler(self.temperature, self.top_p, self.top_k, self.seed)

    def sampler(self, tokens: TokenSpec) -> Sampler:
        """Return a sampler for one answer, with the tokens that `ilvc` bans."""
        banned = banned_tokens(self.ilvc, tokens)
        choose = make_sampler(self.temperature, self.top_p, self.top_k, self.seed, banned)
        return ScoringSampler(choose, banned) if self.logprobs else choose


@dataclass(frozen=True)
class Prompt:
    """Token ids around the visual prefix: `before` it, and behind it those of `history` and `after`.

    `history` has earlier turns, up to the last one's answer, with regions; `after` what is new: the end of
    that answer, if there is one, and the question. `question` is its text; `label` names a mask that the
    answer itself does not name.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    stop_ids: frozenset[int]
    max_new_tokens: int
    question: str = ""
    label: str = ""
    history: tuple[Piece, ...] = ()


def check_ilvc(ilvc: str) -> Ilvc:
    """Return `ilvc`. Raises LiraError if it is no `Ilvc`."""
    for known in get_args(Ilvc):
        if ilvc == known:
            return known
    raise LiraError(f"ilvc is {ilvc!r}; expected one of {', '.join(get_args(Ilvc))}")


def encodes_regions(ilvc: Ilvc) -> bool:
    """Whether a region joins the sequence at `<image_id>`."""
    return ilvc in ("auto", "on")


def banned_tokens(ilvc: Ilvc, tokens: TokenSpec) -> tuple[int, ...]:
    """Return the token ids that are never chosen."""
    return (tokens.image_id,) if ilvc == "off" else ()


def build_prompt(prompts: PromptSpec, tokens: TokenSpec, tokenizer: TextCoder, asked: Question) -> Prompt:
    """Return the prompt of a free-form question, or of a task with the text that its template needs.

    The question stays as it is, with its blanks and special tokens: "<image>" is the image's place (at most
    once; without it the image comes first), "[SEG]" or "</s>" become these tokens. Only the bundle's end
    tokens end the answer to a free-form question. With ilvc="off" a task takes its prompt without ILVC if the
    bundle has one (the paper's two prompts, supplementary text, section 6). With a history the image is in
    its first turn, and each of its answers is closed by the bundle's first end token, that of a turn,
    whatever ended it.

    Raises LiraError for a question with two "<image>" or one in a later turn, an unknown task, a task with a
    text too few or too many, and a history or system text for a bundle with another template.
    """
    question, expression = asked.question, asked.expression
    if asked.task is None:
        if expression is not None:
            raise LiraError(f"an expression needs a task; expected task to be one of {_listed(prompts)}")
        most = asked.max_new_tokens or FREE_FORM_MAX_NEW_TOKENS
        return _assemble(prompts, tokens, tokenizer, asked, question or "", frozenset(tokens.eos), most, "")

    if asked.task not in prompts.tasks:
        raise LiraError(f"there is no task {asked.task!r} in this bundle; expected one of {_listed(prompts)}")
    spec = prompts.tasks[asked.task]
    template = spec.question
    if asked.ilvc == "off" and spec.question_without_ilvc is not None:
        template = spec.question_without_ilvc
    label = ""
    if "{expression}" in template:
        if question is not None and expression is not None:
            raise LiraError(f"task {asked.task} takes one text; found a question and an expression")
        text = expression if expression is not None else question or ""
        if not text.strip():
            raise LiraError(f"task {asked.task} needs an expression; found none, or an empty one")
        label = "" if template == "{expression}" else text.strip()  # a question names no object
        template = template.replace("{expression}", text.lower() if spec.lowercase else text)
    elif question is not None or expression is not None:
        raise LiraError(f"task {asked.task} has its own question; found another text beside it: leave it out")
    stop_ids = frozenset(tokens.eos) | {_stop_id(name, spec, tokens, tokenizer) for name in spec.stop}
    most = asked.max_new_tokens or spec.max_new_tokens
    return _assemble(prompts, tokens, tokenizer, asked, template, stop_ids, most, label)


def _assemble(
    prompts: PromptSpec,
    tokens: TokenSpec,
    tokenizer: TextCoder,
    asked: Question,
    question: str,
    stop_ids: frozenset[int],
    max_new_tokens: int,
    label: str,
) -> Prompt:
    # As upstream, encode the two sides of <image> separately: no token may span its place.
    first, *later = (*(turn.question for turn in asked.history), question)
    before, after = first_turn(prompts, first)
    head = tokenizer.encode(system_turn(prompts, asked.system) + before)
    if prompts.add_bos:
        head = [tokens.bos, *head]
    new, history = tokenizer.encode(after), list[Piece]()
    for turn, following in zip(asked.history, later, strict=True):
        history += new
        history += tokenizer.encode(turn.answer) if isinstance(turn.answer, str) else turn.answer
        new = [tokens.eos[0], *tokenizer.encode(later_turn(prompts, following))]
    return Prompt(tuple(head), tuple(new), stop_ids, max_new_tokens, question, label, tuple(history))


def _stop_id(name: str, spec: TaskSpec, tokens: TokenSpec, tokenizer: TextCoder) -> int:
    if name == "<image_id>":
        return tokens.image_id
    token_id = tokenizer.id_of(name)
    if token_id is None:
        raise LiraError(
            f"the bundle's tokenizer has no token {name!r}, which ends the answer to {spec.question!r}"
        )
    return token_id


def _listed(prompts: PromptSpec) -> str:
    return ", ".join(sorted(prompts.tasks))
