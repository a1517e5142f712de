"""Ask a server one question, and note what came when."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from lira_bench.serving.questions import Conversation

_CHAT, _SEGMENT = "/v1/chat/completions", "/v1/segment"


@dataclass
class Reply:
    """What a client got.

    Attributes:
        status: of the response; 0 without one. error: what was wrong, "" if nothing was.
        text: of the answer. masks: as RLE, and for segment in all formats. tokens: ids, of streams alone.
        seconds: until the end. first: until the first token, of streams alone. new_tokens: of the answer.
        left: whether the client left in the middle. retry_after: seconds, of a 503.
    """

    status: int = 0
    error: str = ""
    text: str = ""
    masks: list[Any] = field(default_factory=list)
    tokens: list[int] | None = None
    seconds: float = 0.0
    first: float | None = None
    new_tokens: int = 0
    left: bool = False
    retry_after: float = 1.0

    @property
    def complete(self) -> bool:
        return self.status == 200 and not self.left and not self.error


async def ask(
    client: httpx.AsyncClient,
    conversation: Conversation,
    turn: int,
    answers: Sequence[str],
    stream: bool = False,
    leave_after: int | None = None,
) -> Reply:
    """Ask question `turn` of a conversation. `leave_after`: events of a stream after which to leave."""
    segments = bool(conversation.asks[turn].formats)
    stream = stream and not segments
    body = json.dumps(conversation.body(turn, answers, stream)).encode()
    reply, started = Reply(), time.perf_counter()
    try:
        headers = {"content-type": "application/json"}
        path = _SEGMENT if segments else _CHAT
        async with client.stream("POST", path, content=body, headers=headers) as response:
            reply.status = response.status_code
            if response.status_code != 200:
                _refused(reply, response, await response.aread())
            elif stream:
                await _read_stream(reply, response, started, leave_after)
            else:
                _read_whole(reply, json.loads(await response.aread()), segments)
    except (httpx.HTTPError, ValueError, KeyError) as error:
        reply.error = f"{type(error).__name__}: {error}"
    reply.seconds = time.perf_counter() - started
    return reply


def _refused(reply: Reply, response: httpx.Response, body: bytes) -> None:
    reply.retry_after = float(response.headers.get("retry-after", 0))
    told = json.loads(body)["error"]["message"]
    if reply.status != 503:
        reply.error = f"{reply.status}: {told}"
    elif reply.retry_after <= 0:
        reply.error = f"a 503 without Retry-After: {told}"


def _read_whole(reply: Reply, found: dict[str, Any], segments: bool) -> None:
    if segments:
        reply.text, reply.masks = found["text"], [_without_names(mask) for mask in found["masks"]]
        reply.new_tokens = found["timings"]["new_tokens"]
        return
    message = found["choices"][0]["message"]
    reply.text, reply.masks = message["content"], [mask["rle"] for mask in message["lira"]["masks"]]
    reply.new_tokens = found["usage"]["completion_tokens"]


def _without_names(mask: dict[str, Any]) -> dict[str, Any]:
    """Return a mask without the id that Label Studio's items are given anew each time."""
    item = mask.get("label_studio")
    return mask if item is None else mask | {"label_studio": {k: v for k, v in item.items() if k != "id"}}


async def _read_stream(
    reply: Reply, response: httpx.Response, started: float, leave_after: int | None
) -> None:
    reply.tokens, events, done = [], 0, False
    async for line in response.aiter_lines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            done = True
            continue
        found = json.loads(line[6:])
        if "error" in found:
            told = found["error"]
            # The status was sent before a queued question was refused.
            reply.status, reply.error = (503, "") if told["code"] == "busy" else (200, told["message"])
            return
        _note(reply, found, started)
        events += 1
        if leave_after is not None and events >= leave_after:
            reply.left = True
            return
    if not done:
        reply.error = "a stream without its end"


def _note(reply: Reply, chunk: dict[str, Any], started: float) -> None:
    for choice in chunk["choices"]:
        reply.text += choice["delta"].get("content") or ""
    event = chunk.get("lira", {})
    if event.get("type") == "text" and event["token_id"] is not None:
        assert reply.tokens is not None
        reply.tokens.append(event["token_id"])
        if reply.first is None:
            reply.first = time.perf_counter() - started
    elif event.get("type") == "mask":
        reply.masks.append(event["rle"])
    if chunk.get("usage"):
        reply.new_tokens = chunk["usage"]["completion_tokens"]
