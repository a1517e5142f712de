"""The openai package, as its users write it: plain and streaming, sync and async, turns, wrong fields."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

GCG = "an orange star, a house, a yellow circle and a fish."
FISH = "Is there a fish in the image? Please answer yes or no."
PENGUIN = "Is there a penguin in the image? Please answer yes or no."
MODEL = "lira-nano"


def client_of(server: Any, **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", **{"api_key": "none", "max_retries": 0, **options})


@pytest.fixture
def client(served: Any) -> Iterator[OpenAI]:
    with client_of(served) as opened:
        yield opened


@pytest.fixture
def picture(serve: SimpleNamespace) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": serve.data_uri(), "detail": "high"}}


def user(text: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def lira(**options: Any) -> dict[str, Any]:
    return {"lira": options}


def test_plain(client: OpenAI, picture: dict[str, Any]) -> None:
    found = client.chat.completions.create(
        model=MODEL, messages=[user("the orange star", picture)], extra_body=lira(task="refseg")
    )
    assert isinstance(found, ChatCompletion) and found.object == "chat.completion"
    assert found.id.startswith("chatcmpl-") and found.model == MODEL
    assert abs(found.created - time.time()) < 600
    (choice,) = found.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    message = choice.message
    assert (message.role, message.content, message.refusal) == ("assistant", "", None)
    extra = message.model_extra
    assert extra is not None
    assert [phrase["text"] for phrase in extra["lira"]["phrases"]] == ["the orange star"]
    (mask,) = extra["lira"]["masks"]
    assert mask["id"] == 0 and mask["rle"]["size"] == [640, 640]
    assert found.usage is not None and found.usage.prompt_tokens_details is not None
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert 0 <= (found.usage.prompt_tokens_details.cached_tokens or 0) < found.usage.prompt_tokens


def test_streaming_has_masks_in_the_extra_field(client: OpenAI, picture: dict[str, Any]) -> None:
    stream = client.chat.completions.create(
        model=MODEL,
        messages=[user("", picture)],
        stream=True,
        stream_options={"include_usage": True},
        extra_body=lira(task="gcg"),
    )
    chunks = list(stream)
    assert all(isinstance(chunk, ChatCompletionChunk) for chunk in chunks)
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    *others, last = chunks
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    assert last.choices == [] and last.usage is not None
    assert all(chunk.usage is None for chunk in others)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in others) == GCG
    assert [chunk.choices[0].finish_reason for chunk in others] == [None] * (len(others) - 1) + ["stop"]
    events = [(chunk.model_extra or {}).get("lira") for chunk in others]
    assert events[0] is None
    kinds = [event["type"] for event in events[1:]]
    assert kinds[0] == "look" and kinds[-2:] == ["timings", "finish"]
    assert kinds.count("mask") == 8 and kinds.count("phrase") == kinds.count("region") == 4
    whole = client.chat.completions.create(
        model=MODEL, messages=[user("", picture)], extra_body=lira(task="gcg")
    )
    assert whole.usage is not None
    assert whole.usage.completion_tokens == last.usage.completion_tokens == kinds.count("text")
    assert whole.usage.prompt_tokens == last.usage.prompt_tokens


def test_without_stream_options_no_chunk_has_usage(client: OpenAI, picture: dict[str, Any]) -> None:
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=[user(FISH, picture)], stream=True, extra_body=lira(task="vqa")
        )
    )
    assert all(chunk.usage is None and len(chunk.choices) == 1 for chunk in chunks)


def test_the_clients_own_accumulation_of_a_stream(client: OpenAI, picture: dict[str, Any]) -> None:
    """The helper that puts chunks together again wants every chunk well formed."""
    with client.chat.completions.stream(
        model=MODEL, messages=[user("", picture)], extra_body=lira(task="gcg")
    ) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert text == final.choices[0].message.content == GCG
    assert final.choices[0].finish_reason == "stop"


def test_several_turns_with_the_message_given_back(client: OpenAI, picture: dict[str, Any]) -> None:
    messages: list[Any] = [user("", picture)]
    first = client.chat.completions.create(model=MODEL, messages=messages, extra_body=lira(task="gcg"))
    messages += [first.choices[0].message, user(FISH)]
    second = client.chat.completions.create(model=MODEL, messages=messages)
    messages += [second.choices[0].message.to_dict(), user(PENGUIN)]  # both ways are in use
    third = client.chat.completions.create(model=MODEL, messages=messages)
    assert [one.choices[0].message.content for one in (first, second, third)] == [GCG, "No", "No"]
    histories = [
        (one.choices[0].message.model_extra or {})["lira"]["history"] for one in (first, second, third)
    ]
    assert [one["turns"] for one in histories] == [0, 1, 2]
    assert [one["as_text"] for one in histories] == [0, 0, 0]
    assert histories[2]["rows_kept"] > histories[1]["rows_kept"] > 0


def test_logprobs(client: OpenAI, picture: dict[str, Any]) -> None:
    ask: dict[str, Any] = {
        "model": MODEL,
        "messages": [user(FISH, picture)],
        "logprobs": True,
        "extra_body": lira(task="vqa"),
    }
    whole = client.chat.completions.create(**ask)
    assert whole.choices[0].logprobs is not None and whole.usage is not None
    content = whole.choices[0].logprobs.content or []
    assert len(content) == whole.usage.completion_tokens == 2
    assert content[0].token.strip() == "Yes" and content[0].bytes == list(content[0].token.encode())
    assert all(one.logprob <= 0 and one.top_logprobs == [] for one in content)
    streamed = [
        one
        for chunk in client.chat.completions.create(**ask, stream=True)
        if chunk.choices[0].logprobs
        for one in chunk.choices[0].logprobs.content or []
    ]
    assert [(one.token, one.logprob) for one in streamed] == [(one.token, one.logprob) for one in content]


@pytest.mark.parametrize(
    ("options", "content", "reason"),
    [
        ({"stop": " house"}, "an orange star, a", "stop"),
        ({"stop": ["zebra", " star"]}, "an orange", "stop"),
        ({"max_tokens": 5}, "an orange star", "length"),
        ({"max_completion_tokens": 5, "max_tokens": 90}, "an orange star", "length"),
        ({"temperature": 0, "top_p": 0.5, "seed": -3}, GCG, "stop"),
        ({"user": "me", "presence_penalty": 0, "n": 1, "stop": []}, GCG, "stop"),
    ],
)
def test_what_ends_an_answer(
    client: OpenAI, picture: dict[str, Any], options: dict[str, Any], content: str, reason: str
) -> None:
    found = client.chat.completions.create(
        model=MODEL, messages=[user("", picture)], extra_body=lira(task="gcg"), **options
    )
    assert (found.choices[0].message.content, found.choices[0].finish_reason) == (content, reason)


def test_a_seed_repeats_a_sampled_answer(client: OpenAI, picture: dict[str, Any]) -> None:
    def drawn(seed: int | None) -> str:
        found = client.chat.completions.create(
            model=MODEL,
            messages=[user("", picture)],
            temperature=2,
            max_tokens=24,
            seed=seed,
            extra_body=lira(task="caption"),
        )
        return (found.choices[0].message.model_extra or {})["lira"]["raw_text"]

    assert drawn(7) == drawn(7)
    assert len({drawn(seed) for seed in range(4)}) > 1


def test_models(client: OpenAI) -> None:
    (listed,) = client.models.list()
    assert (listed.id, listed.object, listed.owned_by) == (MODEL, "model", "lira-edge")
    assert (listed.model_extra or {})["lira"]["tasks"]["refseg"]["needs_text"] is True
    assert client.models.retrieve(MODEL).to_dict() == listed.to_dict()
    with pytest.raises(openai.NotFoundError, match="expected 'lira-nano'") as caught:
        client.models.retrieve("openai/gpt")
    assert caught.value.code == "model_not_found"


def test_the_raw_response_has_headers(client: OpenAI, picture: dict[str, Any]) -> None:
    ask: dict[str, Any] = {
        "model": MODEL,
        "messages": [user(FISH, picture)],
        "extra_body": lira(task="vqa"),
    }
    raw = client.chat.completions.with_raw_response.create(**ask)
    assert len(raw.headers["x-request-id"]) == 32
    assert raw.headers["cache-control"] == "no-store"
    assert raw.headers["content-type"] == "application/json"
    parsed = raw.parse()
    assert parsed.choices[0].message.content == "Yes"
    assert parsed._request_id == raw.headers["x-request-id"]
    with client.chat.completions.with_streaming_response.create(**ask, stream=True) as streamed:
        assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
        lines = list(streamed.iter_lines())
    assert [line for line in lines if line][-1] == "data: [DONE]"
    # Older clients than the installed one hand on a named event as another object than a chunk.
    assert not [line for line in lines if not line.startswith("data: ") and line]


# Errors


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "user", "content": FISH}]}, "messages", "no picture"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'system'"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"n": 2}, "n", "less than or equal to 1"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
        ({"extra_body": lira(task="segment")}, "lira.task", "expected one of caption, gcg, refseg, vqa"),
        ({"extra_body": lira(ilvc="maybe")}, "lira.ilvc", "'auto'"),
        ({"extra_body": lira(attributes=["red", "rezzzd"])}, None, "begin with the same token|no token"),
    ],
)
def test_wrong_fields(
    client: OpenAI, picture: dict[str, Any], fields: dict[str, Any], param: str | None, says: str
) -> None:
    ask = {"model": MODEL, "messages": [user("the fish", picture)], **fields}
    with pytest.raises(openai.BadRequestError, match=says) as caught:
        client.chat.completions.create(**ask)
    assert caught.value.status_code == 400
    assert caught.value.type == "invalid_request_error"
    assert caught.value.param == param
    assert caught.value.request_id


def test_another_model(client: OpenAI, picture: dict[str, Any]) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=[user(FISH, picture)])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_an_error_before_the_first_token_of_a_stream(client: OpenAI, picture: dict[str, Any]) -> None:
    """The stream is open by then, so the error is an event, which the client raises."""
    stream = client.chat.completions.create(model=MODEL, messages=[user("why " * 900, picture)], stream=True)
    with pytest.raises(openai.APIError, match="expected at most 640: ask a shorter question") as caught:
        list(stream)
    assert caught.value.type == "invalid_request_error"


# asyncio


async def asked(client: AsyncOpenAI, messages: Sequence[Any], **options: Any) -> ChatCompletion:
    found: ChatCompletion = await client.chat.completions.create(
        model=MODEL, messages=list(messages), **options
    )
    return found


def test_async(served: Any, picture: dict[str, Any]) -> None:
    async def ask() -> None:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
            assert [model.id async for model in client.models.list()] == [MODEL]
            questions = [("vqa", FISH), ("vqa", PENGUIN), ("refseg", "the fish"), ("gcg", "")] * 2
            answers = await asyncio.gather(
                *(
                    asked(client, [user(text, picture)], extra_body=lira(task=task))
                    for task, text in questions
                )
            )
            contents = [one.choices[0].message.content for one in answers]
            assert contents == ["Yes", "No", "", GCG] * 2
            words = []
            stream = await client.chat.completions.create(
                model=MODEL, messages=[user("", picture)], stream=True, extra_body=lira(task="gcg")
            )
            async for chunk in stream:
                words.append(chunk.choices[0].delta.content or "")
            assert "".join(words) == GCG
            with pytest.raises(openai.BadRequestError, match="no picture"):
                await asked(client, [user(FISH)])

    asyncio.run(ask())
