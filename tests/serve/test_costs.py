"""What a request may cost in memory and time before it is refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest
from invented import chat, picture, refused
from PIL import Image
from pydantic import ValidationError

from lira_runtime.prompts import Question
from lira_runtime.turns import Turn
from lira_serve.api_errors import ApiError
from lira_serve.asked import Asked, Exchange
from lira_serve.body import json_object
from lira_serve.chat_request import ChatRequest, parse
from lira_serve.conversation import asked_of
from lira_serve.model_info import ModelInfo
from lira_serve.segment import SegmentRequest
from lira_serve.turns import TurnMemory

CHAT = "/v1/chat/completions"


def test_a_list_of_wrong_items_makes_few_errors() -> None:
    parts = [{"type": "text"}] * 10_000
    for contents in (
        {"messages": [{"role": "user", "content": parts}]},
        {"messages": parts[:1000]},
        {"messages": [{"role": "user", "content": "x"}], "stop": [1] * 10_000},
        {"messages": [{"role": "user", "content": "x"}], "lira": {"attributes": [1] * 10_000}},
    ):
        with pytest.raises(ValidationError) as told:
            ChatRequest.model_validate(contents)
        assert told.value.error_count() < 8
    with pytest.raises(ValidationError) as told:
        SegmentRequest.model_validate({"formats": ["x"] * 10_000})
    assert told.value.error_count() < 8


@pytest.mark.parametrize("value", [[[]] * 10_000, {"a": [1] * 10_000}, "y" * 100_000, 10**4000])
def test_a_large_value_is_not_written_out(value: Any) -> None:
    class Silent(list):  # type: ignore[type-arg]
        def __repr__(self) -> str:
            raise AssertionError("written out")

    given = Silent(value) if isinstance(value, list) else value
    with pytest.raises(ApiError) as told:
        parse(ChatRequest, {"messages": given, "model": given})
    assert len(told.value.message) < 300


@pytest.mark.parametrize("item", [b"[],", b"{},", b"1,"])
def test_a_body_of_too_many_values_is_not_parsed(item: bytes) -> None:
    with pytest.raises(ApiError, match="more than 1,000,000 values"):
        json_object(b'{"a":[' + item * 1_000_000 + b"1]}")


INFO = ModelInfo("lira", "cpu", "fp32", 640, 12, {"refseg": {"question": "{expression}", "needs_text": True}})


class Pictures:
    """Counts how many pictures are decoded."""

    def __init__(self) -> None:
        self.decoded = 0

    async def at(self, address: str) -> tuple[Image.Image, str]:
        self.decoded += 1
        return Image.new("RGB", (1, 1)), address.partition("#")[0]


def conversation(*addresses: str, text: str = "x") -> Any:
    parts = [{"type": "image_url", "image_url": address} for address in addresses]
    messages = [{"role": "user", "content": [part]} for part in parts]
    return parse(ChatRequest, {"messages": [*messages, {"role": "user", "content": text}]})


def test_of_several_pictures_few_are_decoded() -> None:
    pictures: Any = Pictures()
    with pytest.raises(ApiError, match="several pictures"):
        asyncio.run(asked_of(conversation("a", "b", "c"), pictures, INFO))
    assert pictures.decoded == 2
    with pytest.raises(ApiError, match="several pictures"):
        asyncio.run(asked_of(conversation(*(f"a#{n}" for n in range(200))), pictures, INFO))
    assert pictures.decoded == 2
    assert asyncio.run(asked_of(conversation(*["a"] * 200), pictures, INFO)).digest == "a"
    assert pictures.decoded == 3


def test_texts_that_no_context_holds_are_refused_before_they_are_tokenized() -> None:
    pictures: Any = Pictures()
    with pytest.raises(ApiError) as told:
        asyncio.run(asked_of(conversation("a", text="x" * 82_000), pictures, INFO))
    assert told.value.code == "context_length_exceeded" and pictures.decoded == 0


def test_a_history_longer_than_the_context_is_refused(client: httpx.Client) -> None:
    turns = [
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "a red star " * 8},
    ] * 40
    error = refused(client.post(CHAT, json=chat(messages=[*chat()["messages"], *turns[1:], turns[0]])))
    assert "expected at most 640" in error["message"]
    error = refused(client.post("/v1/segment", json={"image": picture(), "text": "y" * 100_000}))
    assert error["code"] == "context_length_exceeded"


def test_memory_of_turns_is_bounded_by_bytes() -> None:
    image = Image.new("RGB", (1, 1))
    memory = TurnMemory(most_bytes=100_000)

    def asked(text: str) -> Asked:
        return Asked(image, "digest", Question("x"), text)

    for number in range(50):
        memory.remember(asked(f"q{number}"), "a", Turn("y" * 10_000, tuple(range(10))))
        memory.remember(asked(f"q{number}"), "a", Turn("y" * 10_000, tuple(range(10))))
    known = [
        memory.history(replace(asked("z"), history=(Exchange(f"q{n}", "a"),)))[1] == 0 for n in range(50)
    ]
    assert known == [False] * 43 + [True] * 7  # and one place for the name of all


def test_turns_are_known_by_all_that_was_said_before() -> None:
    image, memory = Image.new("RGB", (1, 1)), TurnMemory()
    said = [Exchange(f"q{n}", f"a{n}") for n in range(3)]
    last = Asked(image, "digest", Question("x"), "q3", history=tuple(said))
    memory.remember(last, "a3", Turn("q3", (7,)))
    after = replace(last, text="q4", history=(*said, Exchange("q3", "a3")))
    assert memory.history(after)[1] == 3  # the three that nobody remembered
    for history in ((said[0], *said), (*said[:2], Exchange("q2", "b"), Exchange("q3", "a3")), said[1:]):
        assert memory.history(replace(after, history=tuple(history)))[1] == len(history)
