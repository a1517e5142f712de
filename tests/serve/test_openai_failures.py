"""The openai package, where something goes wrong: it leaves, answers fail, the queue is full, keys are wrong.

The answers are those of a gate, which lets them go on one token at a time.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from lira_serve.asked import Asked, Event
from lira_serve.model_info import ModelInfo
from lira_serve.settings import Settings
from lira_serve.worker import Worker

MODEL = "lira-nano"


def client_of(server: Any, **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", **{"api_key": "none", "max_retries": 0, **options})


@pytest.fixture
def picture(serve: SimpleNamespace) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": serve.data_uri()}}


def user(text: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


@dataclass
class Gate:
    """An answer of 50 words, one for each `let`. It stands for an engine that takes long."""

    info: ModelInfo
    began: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    steps: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    words: int = 0

    def let(self, words: int) -> None:
        for _ in range(words):
            self.steps.release()

    def close(self) -> None:
        pass

    def answer(self, asked: Asked) -> Iterator[Event]:
        self.began.append(asked.text)
        try:
            for step in range(50):
                assert self.steps.acquire(timeout=30)
                self.words += 1
                if asked.text == "fail" and step == 1:
                    raise RuntimeError("secret detail")
                yield {"type": "text", "text": f"{step} ", "token_id": 9, "step": step}
            yield finish_of("".join(f"{step} " for step in range(50)))
        finally:
            self.ended.append(asked.text)


def finish_of(content: str) -> Event:
    return {
        "type": "finish",
        "content": content,
        "masks": [],
        "finish_reason": "stop",
        "logprobs": None,
        "timings": {},
        "usage": {"prompt_tokens": 3, "cached_tokens": 0, "completion_tokens": 50},
        "cache": {"scenes": 0, "bytes": 0, "evictions": 0},
    }


@dataclass
class Gated:
    server: Any
    gate: Gate

    def until(self, done: Callable[[], bool]) -> None:
        for _ in range(3000):
            if done():
                return
            time.sleep(0.01)
        raise AssertionError("it does not come to pass")


@pytest.fixture
def gated(serve: SimpleNamespace) -> Iterator[Callable[..., Gated]]:
    stack = ExitStack()

    @contextmanager
    def opened(**options: Any) -> Iterator[Gated]:
        gate = Gate(ModelInfo(MODEL, "cpu", "fp32", 640, 1, {}))
        settings = replace(Settings(Path("none")), **options)

        def worker(settings: Settings) -> Any:
            return Worker(lambda: gate, lambda desk: None, Gate.answer, settings.queue)

        with serve.serving(settings, worker) as server:
            try:
                yield Gated(server, gate)
            finally:
                gate.let(10_000)

    with stack:
        yield lambda **options: stack.enter_context(opened(**options))


def stream_of(client: OpenAI, picture: dict[str, Any], text: str = "go") -> Any:
    return client.chat.completions.create(model=MODEL, messages=[user(text, picture)], stream=True)


@pytest.mark.parametrize("leave", ["stream", "client"])
def test_leaving_a_stream_frees_the_worker_within_one_token(
    gated: Callable[..., Gated], picture: dict[str, Any], leave: str
) -> None:
    at = gated()
    client = client_of(at.server)
    stream = stream_of(client, picture)
    at.gate.let(3)
    words = [next(stream).choices[0].delta.content for _ in range(4)]
    assert words == ["", "0 ", "1 ", "2 "]
    (stream if leave == "stream" else client).close()
    at.until(lambda: '"left": true' in at.server.log.getvalue())
    at.gate.let(1)
    at.until(lambda: at.gate.ended == ["go"])
    assert at.gate.words == 4
    at.until(lambda: at.server.worker.answering == 0)
    at.gate.let(50)
    with client_of(at.server) as other:
        found = other.chat.completions.create(model=MODEL, messages=[user("next", picture)])
    assert found.choices[0].message.content == "".join(f"{step} " for step in range(50))


def test_a_plain_request_that_times_out_frees_the_worker(
    gated: Callable[..., Gated], picture: dict[str, Any]
) -> None:
    at = gated()
    client = client_of(at.server, timeout=0.5)
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model=MODEL, messages=[user("go", picture)])
    at.until(lambda: '"left": true' in at.server.log.getvalue())
    at.gate.let(1)
    at.until(lambda: at.gate.ended == ["go"])
    assert at.gate.words == 1


def test_an_error_in_the_middle_of_a_stream(gated: Callable[..., Gated], picture: dict[str, Any]) -> None:
    at = gated()
    at.gate.let(9)
    stream = stream_of(client_of(at.server), picture, "fail")
    read = []
    with pytest.raises(openai.APIError, match="an error in the server: its log says more") as caught:
        for chunk in stream:
            read.append(chunk.choices[0].delta.content)
    assert read == ["", "0 "]
    assert caught.value.type == "server_error" and "secret" not in str(caught.value.body)
    with pytest.raises(openai.InternalServerError, match="its log says more"):
        client_of(at.server).chat.completions.create(model=MODEL, messages=[user("fail", picture)])


def test_a_full_queue_is_a_503_that_the_client_retries(
    gated: Callable[..., Gated], picture: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    at = gated(queue=0)
    running = stream_of(client_of(at.server), picture, "running")
    at.until(lambda: at.gate.began == ["running"])
    with pytest.raises(openai.InternalServerError, match="ask again later") as caught:
        client_of(at.server).chat.completions.create(model=MODEL, messages=[user("now", picture)])
    assert (caught.value.status_code, caught.value.code) == (503, "busy")
    wait = int(caught.value.response.headers["retry-after"])
    assert wait >= 1

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        at.gate.let(200)  # the running answer comes to its end
        at.until(lambda: at.server.worker.answering == 0)

    monkeypatch.setattr("time.sleep", patient(sleep, time.sleep))
    patiently = client_of(at.server, max_retries=openai.DEFAULT_MAX_RETRIES)
    found = patiently.chat.completions.create(model=MODEL, messages=[user("later", picture)])
    assert found.choices[0].message.content and slept == [wait]
    assert at.gate.began == ["running", "later"]
    running.close()


def patient(retry: Callable[[float], None], sleep: Callable[[float], None]) -> Callable[[float], None]:
    """A sleep that hands the client's, of a second or more, to `retry`; the test's own are shorter."""
    return lambda seconds: retry(seconds) if seconds >= 1 else sleep(seconds)


KEYS = ("0123456789abcdef0123456789abcdef", "another-key-of-enough-characters")


def test_keys(gated: Callable[..., Gated], picture: dict[str, Any]) -> None:
    at = gated(api_keys=KEYS)
    at.gate.let(200)
    for key in KEYS:
        client = client_of(at.server, api_key=key)
        assert [model.id for model in client.models.list()] == [MODEL]
        assert client.chat.completions.create(model=MODEL, messages=[user("go", picture)]).id
    for key in ("none", KEYS[0][:-1], KEYS[0] + "0"):
        with pytest.raises(openai.AuthenticationError, match="no valid API key") as caught:
            client_of(at.server, api_key=key).models.list()
        assert (caught.value.status_code, caught.value.code) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            client_of(at.server, api_key=key).chat.completions.create(
                model=MODEL, messages=[user("go", picture)]
            )
    assert at.gate.began == ["go", "go"]


def test_async_cancel_frees_the_worker(gated: Callable[..., Gated], picture: dict[str, Any]) -> None:
    at = gated()

    async def ask() -> None:
        async with AsyncOpenAI(base_url=f"{at.server.url}/v1", api_key="none", max_retries=0) as client:
            task = asyncio.ensure_future(
                client.chat.completions.create(model=MODEL, messages=[user("go", picture)])
            )
            await asyncio.to_thread(at.until, lambda: at.gate.began == ["go"])
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(at.until, lambda: '"left": true' in at.server.log.getvalue())

    asyncio.run(ask())
    at.gate.let(1)
    at.until(lambda: at.gate.ended == ["go"])
    assert at.gate.words == 1
