"""Prompts of several turns, letter by letter, for every family that can be exported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest

from lira_engine.bundle.manifest import PromptSpec, TokenSpec
from lira_engine.errors import LiraError
from lira_export.families import FAMILIES
from lira_runtime import Question, Region, Turn
from lira_runtime.prompts import Prompt, build_prompt

END = 0x110000  # <|im_end|>; the other ids are code points
TOKENS = TokenSpec(END + 1, (END,), END + 2, END + 3, END + 4, END + 5, (32, END + 4))

# InternVL2's chat template for InternLM2 puts nothing between turns (its separator is <|im_end|>), that of
# Qwen2 a line break. Both begin an answer behind "assistant\n" and end it with <|im_end|>.
GAP = {"internlm2": "", "qwen2": "\n"}
SYSTEM = {
    "internlm2": "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，"
    "英文名叫InternVL, 是一个有用无害的人工智能助手。",
    "qwen2": "You are a helpful assistant.",
}


class Letters:
    """Encodes <|im_end|>, and every other character, as one token."""

    unknown_id = None

    def encode(self, text: str) -> list[int]:
        first, *parts = text.split("<|im_end|>")
        return [*map(ord, first), *(one for part in parts for one in (END, *map(ord, part)))]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("<|im_end|>" if one == END else chr(one) for one in ids)

    def id_of(self, token: str) -> int | None:
        return END if token == "<|im_end|>" else None


def read(prompt: Prompt) -> str:
    """Return what the language model reads, as text."""
    assert all(isinstance(piece, int) for piece in prompt.history)
    ids = [piece for piece in prompt.history if isinstance(piece, int)]
    decode = Letters().decode
    return f"{decode(prompt.before)}{{image}}{decode(ids)}{decode(prompt.after)}"


def ask(family: str, question: Question, **changed: str) -> Prompt:
    return build_prompt(replace(FAMILIES[family].prompts, **changed), TOKENS, Letters(), question)


def test_every_family_is_written_down_here() -> None:
    assert FAMILIES.keys() == GAP.keys() == SYSTEM.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_turns_follow_the_base_models_template(family: str) -> None:
    gap = GAP[family]
    history = [Turn("Is it red?", "No."), Turn("Please segment it.", tuple(map(ord, "It is ")))]
    assert read(ask(family, Question("Why?", history=history))) == (
        f"<|im_start|>system\n{SYSTEM[family]}<|im_end|>{gap}"
        f"<|im_start|>user\n{{image}}\nIs it red?<|im_end|>{gap}<|im_start|>assistant\nNo.<|im_end|>{gap}"
        f"<|im_start|>user\nPlease segment it.<|im_end|>{gap}<|im_start|>assistant\nIt is <|im_end|>{gap}"
        f"<|im_start|>user\nWhy?<|im_end|>{gap}<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_history_changes_nothing_that_was_read_before(family: str) -> None:
    """Each prompt begins with the one before it and its answer, token by token."""
    before, turns = ask(family, Question("0")), list[Turn]()
    for number in range(1, 4):
        turns.append(Turn(str(number - 1), (7, Region((2, 2), "4"), 8)))
        prompt = ask(family, Question(str(number), history=turns))
        assert prompt.before == before.before
        assert prompt.history == (*before.history, *before.after, 7, Region((2, 2), "4"), 8)
        assert prompt.after[0] == END
        before = prompt


@pytest.mark.parametrize("family", FAMILIES)
def test_a_system_text_takes_the_place_of_the_bundles(family: str) -> None:
    usual = read(ask(family, Question("it")))
    for text in ("Be brief.", "", "a\nb\\1 {question} <image>"):
        expected = usual.replace(SYSTEM[family], text)
        assert read(ask(family, Question("it", system=text))) == expected != usual
    assert read(ask(family, Question("it", system=None))) == usual


def test_a_later_turn_may_be_a_tasks_question() -> None:
    question = Question(task="refseg", expression="The Ball", history=[Turn("a <image> b?", "No.")])
    prompt = ask("internlm2", question)
    assert (prompt.question, prompt.label) == ("Please segment the ball.", "The Ball")
    assert "user\na {image} b?<|im_end|><|im_start|>assistant\nNo.<|im_end|><|im_start|>user\nPlease" in read(
        prompt
    )


@pytest.mark.parametrize(
    "options, use", [({"history": [Turn("a", "b")]}, "a history"), ({"system": "a"}, "a system text")]
)
def test_another_template_is_refused(options: dict[str, object], use: str) -> None:
    question = Question("it", **options)  # type: ignore[arg-type]
    for system in ("You are LIRA.\n", "<|im_start|>system\nYou", "<s>system\na<|im_end|>"):
        with pytest.raises(LiraError, match=f"the bundle's system turn is .*: ask without {use}$"):
            ask("internlm2", question, system=system)
        assert ask("internlm2", Question("it"), system=system).history == ()


def test_bos_comes_once(fakes: SimpleNamespace) -> None:
    prompts: PromptSpec = replace(FAMILIES["qwen2"].prompts, add_bos=True)
    prompt = build_prompt(prompts, TOKENS, Letters(), Question("it", history=[Turn("a", "b")]))
    assert (*prompt.before, *prompt.history, *prompt.after).count(TOKENS.bos) == 1
    assert prompt.before[0] == TOKENS.bos
