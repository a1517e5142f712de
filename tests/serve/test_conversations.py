"""Several turns: what the KV cache keeps, to the row, and that the answers do not depend on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import takewhile
from types import SimpleNamespace
from typing import Any

import pytest

from lira_runtime import Lira
from lira_runtime.prompts import Prompt, Question
from lira_runtime.turns import Region, Turn
from lira_serve.asked import Asked
from lira_serve.settings import Settings

FISH = "Is there a fish in the image? Please answer yes or no."
STAR = "Is there an orange star in the image? Please answer yes or no."
PENGUIN = "Is there a penguin in the image? Please answer yes or no."
REGION = 16  # rows of a tile of lira-nano


def lira_of(found: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = found["choices"][0]["message"]["lira"]
    return told


def said(found: dict[str, Any]) -> tuple[str, list[Any]]:
    """What an answer says: its text with tags, and its masks' boxes."""
    told = lira_of(found)
    return told["raw_text"], [mask["box"] for mask in told["masks"]]


def cached(found: dict[str, Any]) -> int:
    return int(found["usage"]["prompt_tokens_details"]["cached_tokens"])


def rows(prompt: Prompt) -> list[Any]:
    """The rows behind the image: token ids, and each region as often as it has rows."""
    spread: list[Any] = []
    for piece in (*prompt.history, *prompt.after):
        spread += [piece] * (REGION if isinstance(piece, Region) else 1)
    return spread


def common(one: list[Any], other: list[Any]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


@dataclass
class Runtime:
    """The same conversation in the runtime, to count rows by."""

    lira: Lira
    turns: list[Turn] = field(default_factory=list)
    head: int = 0  # rows up to the image's last
    read: list[Any] = field(default_factory=list)  # rows behind the image that a cache has now

    def prompt(self, question: Question) -> Prompt:
        return self.lira.prompt(replace(question, history=tuple(self.turns)))

    def asked(self, scene: Any, question: Question) -> Prompt:
        prompt = self.prompt(question)
        answer = scene.ask(question, history=self.turns)
        self.turns.append(answer.turn)
        pieces = rows(replace(prompt, history=(), after=tuple(answer.turn.answer)))
        self.read = [*rows(prompt), *pieces]
        self.head = answer.timings.prompt_tokens - len(rows(prompt))
        return prompt


@pytest.fixture
def runtime(lira: Lira) -> Runtime:
    return Runtime(lira)


def test_turns_extend_the_cache(talk: Callable[[], Any], runtime: Runtime) -> None:
    """Every row of the turns before is kept: those of the prompts, of the answers, and of their regions."""
    going, before = talk(), 0
    scene = runtime.lira.look(going.image)
    for number, question in enumerate([Question(None, "gcg"), Question(FISH), Question(PENGUIN, "vqa")]):
        prompt = runtime.asked(scene, question)
        found = going.ask(question.question or "", **({"task": question.task} if question.task else {}))
        assert lira_of(found)["scene"] == ("kept" if number else "new")
        assert lira_of(found)["history"] == {"turns": number, "rows_kept": before, "as_text": 0}
        assert found["usage"]["prompt_tokens"] == runtime.head + len(rows(prompt))
        assert cached(found) == (runtime.head + before if number else 0)
        assert len(rows(prompt)) - before == len(prompt.after)  # only the new question is read
        before = len(runtime.read)
    assert before > 4 * REGION
    # Written out: the question's and the answer's tokens, four regions of 16 rows with " <p>" behind each.
    encode = runtime.lira.tokenizer.encode
    first = encode(f"\n{runtime.turns[0].question}<|im_end|><|im_start|>assistant\n")
    assert runtime.turns[0].answer[-1] == encode(".")[-1]
    assert len(rows(replace(prompt, after=()))) > len(first) + 41 + 4 * (16 + 2)


def test_a_changed_answer_falls_back_to_the_common_prefix(talk: Callable[[], Any], runtime: Runtime) -> None:
    going = talk()
    scene = runtime.lira.look(going.image)
    going.ask("", task="gcg")
    runtime.asked(scene, Question(None, "gcg"))
    changed = [*going.messages]
    changed[1] = {"role": "assistant", "content": "a star and a fish."}
    changed.append({"role": "user", "content": FISH})
    found = going.post(changed)
    # The client's question is "", not the task's: nobody remembers how this answer was asked for.
    prompt = runtime.lira.prompt(Question(FISH, history=(Turn("", "a star and a fish."),)))
    kept = common(rows(prompt), runtime.read)
    assert lira_of(found)["history"] == {"turns": 1, "rows_kept": kept, "as_text": 1}
    assert cached(found) == runtime.head + kept and kept < 5
    assert found["choices"][0]["message"]["content"] in ("Yes", "No")


def test_an_edited_question_keeps_the_turns_before_it(talk: Callable[[], Any], runtime: Runtime) -> None:
    going = talk()
    scene = runtime.lira.look(going.image)
    for question in (Question(FISH), Question(STAR), Question(PENGUIN)):
        going.ask(question.question or "")
        runtime.asked(scene, question)
    first = runtime.turns[:1]
    edited = [*going.messages[:2], {"role": "user", "content": STAR.replace("star", "house")}]
    found = going.post(edited)
    prompt = replace_history(runtime, first, edited[-1]["content"])
    kept = min(common(rows(prompt), runtime.read), len(rows(replace(prompt, after=()))))
    assert lira_of(found)["history"] == {"turns": 1, "rows_kept": kept, "as_text": 0}
    assert kept == len(rows(replace(prompt, after=())))  # the whole first turn
    assert cached(found) == runtime.head + kept


def replace_history(runtime: Runtime, turns: list[Turn], question: str) -> Prompt:
    return runtime.lira.prompt(Question(question, history=tuple(turns)))


def test_an_unknown_answer_is_read_as_text_and_said_so(talk: Callable[[], Any], runtime: Runtime) -> None:
    """As of a server that was started anew, or another model's answer."""
    going = talk()
    history = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": going.picture}}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A fish and a star."}]},
        {"role": "user", "content": FISH},
        {"role": "assistant", "content": None},
        {"role": "user", "content": STAR},
    ]
    found = going.post(history)
    turns = (Turn("", "A fish and a star."), Turn(FISH, ""))
    answer = runtime.lira.look(going.image).ask(STAR, history=turns)
    assert lira_of(found)["history"] == {"turns": 2, "rows_kept": 0, "as_text": 2}
    assert found["choices"][0]["message"]["content"] == answer.text
    assert found["usage"]["prompt_tokens"] == answer.timings.prompt_tokens


def test_an_answer_with_regions_is_known_again_by_its_text(talk: Callable[[], Any], runtime: Runtime) -> None:
    """Only the text comes back, and still the regions are in the prompt: the answers are the runtime's."""
    going = talk()
    going.ask("", task="gcg")
    messages = [
        going.messages[0],
        {"role": "assistant", "content": going.messages[1]["content"]},
        {"role": "user", "content": "Please segment the yellow circle."},
    ]
    found = going.post(messages)
    scene = runtime.lira.look(going.image)
    runtime.asked(scene, Question(None, "gcg"))
    answer = scene.ask("Please segment the yellow circle.", history=runtime.turns)
    assert found["usage"]["prompt_tokens"] == answer.timings.prompt_tokens
    told = lira_of(found)
    assert told["raw_text"] == answer.raw_text
    assert [mask["score"] for mask in told["masks"]] == [mask.score for mask in answer.masks]


def test_another_conversation_about_the_same_picture_in_between(talk: Callable[[], Any]) -> None:
    alone = talk()
    expected = [said(alone.ask("", task="gcg")), said(alone.ask(FISH)), said(alone.ask(PENGUIN))]
    one = talk()
    other = one.another()
    first = said(one.ask("", task="gcg"))
    other.ask(STAR)
    second = one.ask(FISH)
    assert lira_of(second)["history"]["as_text"] == 0
    kept = lira_of(second)["history"]["rows_kept"]
    other.ask("the house", task="refseg")
    third = one.ask(PENGUIN)
    assert [first, said(second), said(third)] == expected
    # The other's rows stand where this one's history was: little more than the template is common.
    assert kept < 10 and lira_of(third)["history"]["rows_kept"] < 10
    assert cached(second) > kept  # the image's rows stay


def test_two_conversations_that_begin_alike_are_told_apart(talk: Callable[[], Any], runtime: Runtime) -> None:
    one = talk()
    one.ask("", task="gcg")
    other = one.another(one.messages)
    names = ("the house", "the yellow circle")
    for talking, expression in zip((one, other), names, strict=True):
        talking.ask(expression, task="refseg")  # the answer's text is "" to both
    thirds = [talking.ask("the fish", task="refseg") for talking in (one, other)]
    assert [lira_of(third)["history"]["as_text"] for third in thirds] == [0, 0]
    scene = runtime.lira.look(one.image)
    first = scene.ask(task="gcg").turn
    for third, expression in zip(thirds, names, strict=True):
        second = scene.ask(task="refseg", expression=expression, history=[first]).turn
        answer = scene.ask(task="refseg", expression="the fish", history=[first, second])
        assert third["usage"]["prompt_tokens"] == answer.timings.prompt_tokens
        assert said(third) == (answer.raw_text, [list(mask.box_xyxy or ()) for mask in answer.masks])


def test_a_turn_with_other_tiles_is_about_another_scene(talk: Callable[[], Any], runtime: Runtime) -> None:
    """The history is the same, regions included; only its rows are in the other scene's cache."""
    going = talk()
    going.ask("", task="gcg")
    found = going.ask("the fish", task="refseg", max_tiles=4)
    assert lira_of(found)["scene"] == "new" and lira_of(found)["image"]["tiles"] == 5
    assert lira_of(found)["history"] == {"turns": 1, "rows_kept": 0, "as_text": 0}
    turn = runtime.lira.look(going.image).ask(task="gcg").turn
    scene = runtime.lira.look(going.image, max_tiles=4)
    answer = scene.ask(task="refseg", expression="the fish", history=[turn])
    assert said(found) == (answer.raw_text, [list(mask.box_xyxy or ()) for mask in answer.masks])
    assert found["usage"]["prompt_tokens"] == answer.timings.prompt_tokens


def test_a_scene_that_was_dropped_in_between(
    serve: SimpleNamespace, nano_settings: Settings, talk: Callable[[], Any]
) -> None:
    """The history is read again, regions included: the answers stay, only the time differs."""
    kept = talk()
    expected = [said(kept.ask("", task="gcg")), said(kept.ask(FISH)), said(kept.ask(PENGUIN))]
    with serve.serving(replace(nano_settings, scene_cache=1)) as small:
        going = replace(kept, server=small, messages=[])
        found = [going.ask("", task="gcg"), going.ask(FISH), going.ask(PENGUIN)]
        assert [said(one) for one in found] == expected
        assert [lira_of(one)["scene"] for one in found] == ["new"] * 3
        assert [cached(one) for one in found] == [0] * 3
        histories = [lira_of(one)["history"] for one in found]
        assert [one["rows_kept"] for one in histories] == [0] * 3
        assert [one["as_text"] for one in histories] == [0] * 3
        assert lira_of(found[2])["timings"]["regions"]  # encoded again
        assert len(small.worker._desk.scenes) == 0


def test_an_answer_that_a_stop_text_ended_is_read_as_the_client_saw_it(
    talk: Callable[[], Any], runtime: Runtime, served: Any
) -> None:
    """The model read the stop text's own tokens too, which are no part of the answer."""
    going = talk()
    first = served.chat("", going.picture, stop=" fish", lira={"task": "gcg"})["choices"][0]["message"]
    assert first["content"].endswith(" a") and "[SEG]" in first["lira"]["raw_text"]
    asked = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": going.picture}}]}
    found = going.post([asked, first, {"role": "user", "content": FISH}])
    assert lira_of(found)["history"]["as_text"] == 1
    answer = runtime.lira.look(going.image).ask(FISH, history=[Turn("", first["content"])])
    assert found["choices"][0]["message"]["content"] == answer.text


def test_a_description_and_a_caption_in_the_same_words_are_told_apart(
    talk: Callable[[], Any], served: Any
) -> None:
    """Both questions have no text of their own, and here the same answer, with regions and without."""
    going = talk()
    masked = served.chat("", going.picture, lira={"task": "gcg"})["choices"][0]["message"]
    served.worker._desk.turns.remember(  # as if a caption had said it
        Asked(going.image, masked["lira"]["image"]["sha256"], Question(None, "caption"), ""),
        masked["content"],
        Turn("Provide a short description of this image.", masked["content"]),
    )
    asked = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": going.picture}}]}
    follow = {"role": "user", "content": FISH}
    bare = {"role": "assistant", "content": masked["content"]}
    rows = [going.post([asked, said, follow])["usage"]["prompt_tokens"] for said in (masked, bare)]
    assert rows[0] - rows[1] > 4 * REGION
