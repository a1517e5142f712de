"""OpenAI's messages in the orders in which clients send them: who speaks, and where the picture is."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from lira_runtime import Lira
from lira_serve.api_errors import ApiError
from lira_serve.chat_request import ChatRequest, parse

FISH = "Is there a fish in the image? Please answer yes or no."
STAR = "Is there an orange star in the image? Please answer yes or no."
PENGUIN = "Is there a penguin in the image? Please answer yes or no."


def lira_of(found: dict[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = found["choices"][0]["message"]["lira"]
    return told


def said(found: dict[str, Any]) -> tuple[str, list[Any]]:
    """What an answer says: its text with tags, and its masks' boxes."""
    told = lira_of(found)
    return told["raw_text"], [mask["box"] for mask in told["masks"]]


def test_a_system_text(talk: Callable[[], Any], lira: Lira) -> None:
    going = talk()
    plain = going.ask(FISH)
    for role in ("system", "developer"):
        messages = [{"role": role, "content": "You are a pirate."}, going.messages[0]]
        found = going.post(messages)
        answer = lira.look(going.image).ask(FISH, system="You are a pirate.")
        assert found["usage"]["prompt_tokens"] == answer.timings.prompt_tokens
        assert found["usage"]["prompt_tokens"] != plain["usage"]["prompt_tokens"]
        assert found["choices"][0]["message"]["content"] == answer.text
    assert (
        found["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    )  # the developer's text is the system's: the rows are the same
    both = [{"role": "system", "content": "You are"}, {"role": "developer", "content": "a pirate."}]
    found = going.post([*both, going.messages[0]])
    answer = lira.look(going.image).ask(FISH, system="You are\na pirate.")
    assert found["usage"]["prompt_tokens"] == answer.timings.prompt_tokens


def test_an_answer_under_another_system_text_is_another_answer(talk: Callable[[], Any]) -> None:
    going = talk()
    going.ask(FISH)
    system = {"role": "system", "content": "You are a pirate."}
    answer = going.messages[-1]
    bare = {"role": "assistant", "content": answer["content"]}
    follow = {"role": "user", "content": STAR}
    found = going.post([system, going.messages[0], bare, follow])
    assert lira_of(found)["history"]["as_text"] == 1
    named = going.post([system, *going.messages, follow])  # by `lira.turn`: these very tokens
    assert lira_of(named)["history"]["as_text"] == 0


def test_messages_of_the_user_in_a_row_are_one_turn(talk: Callable[[], Any], lira: Lira) -> None:
    going = talk()
    alone = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": going.picture}}]}
    words = [{"role": "user", "content": "Look."}, {"role": "user", "content": FISH}]
    found = going.post([alone, *words])
    answer = lira.look(going.image).ask(f"Look.\n{FISH}")
    assert lira_of(found)["history"]["turns"] == 0
    assert found["usage"]["prompt_tokens"] == answer.timings.prompt_tokens
    assert found["choices"][0]["message"]["content"] == answer.text


def test_the_picture_may_come_with_every_turn_or_with_a_later_one(talk: Callable[[], Any]) -> None:
    once, always = talk(), talk()
    expected = [said(once.ask("", task="gcg")), said(once.ask(FISH))]
    assert [said(always.ask("", True, task="gcg")), said(always.ask(FISH, True))] == expected
    assert lira_of(always.ask(PENGUIN, True))["history"]["as_text"] == 0
    late = talk()
    late.messages = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Yes?"}]
    found = late.ask(FISH, True)
    assert lira_of(found)["history"]["turns"] == 1 and said(found)[0].startswith(("Yes", "No"))


def test_the_same_picture_in_another_file_is_the_same(talk: Callable[[], Any]) -> None:
    going = talk()
    going.ask("", task="gcg")
    file = io.BytesIO()
    going.image.save(file, format="BMP")
    going.picture = f"data:image/bmp;base64,{base64.b64encode(file.getvalue()).decode()}"
    found = going.ask(FISH, True)
    assert lira_of(found)["history"]["as_text"] == 0 and lira_of(found)["scene"] == "kept"


def test_two_pictures_are_refused(talk: Callable[[], Any], served: Any, serve: SimpleNamespace) -> None:
    one, other = talk(), talk()
    messages = [
        serve.question(FISH, one.picture),
        {"role": "assistant", "content": "Yes"},
        serve.question("And here?", other.picture),
    ]
    with served.client() as client:
        response = client.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 400
    assert "several pictures; expected one: begin another conversation" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "assistant", "content": "Hi"}], "an answer without a question"),
        ([{"role": "system", "content": "x"}], "the last message is not a user's"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "not a user's"),
        (
            [{"role": "user", "content": "x"}, *[{"role": "assistant", "content": "y"}] * 2],
            "messages.2 is an answer without a question",
        ),
        (
            [{"role": "system", "content": [{"type": "image_url", "image_url": "data:,x"}]}],
            "messages.0 is the system's and has a picture",
        ),
    ],
)
def test_orders_that_are_no_conversation(served: Any, messages: list[Any], says: str) -> None:
    with served.client() as client:
        response = client.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 400 and says in response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("content", "where", "says"),
    [
        (5, "", "valid string"),
        (["q"], ".0", "valid dictionary"),
        ([{"type": "text", "text": "q"}, {"type": "input_audio"}], ".1", "'text', 'image_url'"),
        ([{"type": "text"}], ".0.text", "required"),
        ([{"type": "text", "text": 5}], ".0.text", "valid string"),
        ([{"type": "image_url", "image_url": {"url": None}}], ".0.image_url.url", "valid string"),
        ([{"type": "image_url", "image_url": 5}], ".0.image_url", "valid dictionary"),
    ],
)
def test_an_error_is_about_the_part_that_is_wrong(content: object, where: str, says: str) -> None:
    with pytest.raises(ApiError, match=says) as caught:
        parse(ChatRequest, {"messages": [{"role": "user", "content": content}]})
    assert caught.value.param == f"messages.0.content{where}"
    assert caught.value.message.startswith(f"{caught.value.param}: ")


def test_an_error_does_not_repeat_a_type_of_any_length() -> None:
    parts = [{"type": "a\nb" * 1000}]
    with pytest.raises(ApiError, match="one of 'text', 'image_url', 'refusal'; found 'a") as caught:
        parse(ChatRequest, {"messages": [{"role": "user", "content": parts}]})
    assert len(caught.value.message) < 250 and "\n" not in caught.value.message


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_a_picture_without_words_is_told_what_to_add(served: Any, serve: Any, text: str | None) -> None:
    parts: list[Any] = [{"type": "image_url", "image_url": {"url": serve.data_uri()}}]
    parts += [] if text is None else [{"type": "text", "text": text}]
    with served.client() as client:
        body = {"messages": [{"role": "user", "content": parts}]}
        response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400 and "or a task in lira.task" in response.json()["error"]["message"]


def test_what_other_clients_send_besides_is_taken(served: Any, serve: Any) -> None:
    """As LangChain, LlamaIndex, the AI SDK, Open WebUI and openai's own packages do, empty or as defaults."""
    extras: dict[str, Any] = {
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": False,
        "response_format": {"type": "text"},
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "metadata": {"a": "b"},
        "store": False,
        "reasoning_effort": "low",
        "modalities": ["text"],
        "user": "someone",
        "n": None,
        "stop": [],
        "logprobs": None,
        "top_logprobs": None,
        "max_tokens": None,
        "max_completion_tokens": 1_000_000,
        "stream_options": {"include_usage": None},
        "lira": None,
    }
    detailed = serve.question(FISH, serve.data_uri())
    detailed["content"][0]["image_url"]["detail"] = "auto"
    detailed["content"][1]["cache_control"] = {"type": "ephemeral"}
    plain = served.chat(FISH)["choices"][0]["message"]["content"]
    for stream in (False, None):
        with served.client() as client:
            body = {"messages": [{**detailed, "name": "me"}], "stream": stream, **extras}
            response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        assert response.json()["choices"][0]["message"]["content"] == plain
