"""An answer's events as OpenAI's response, whole or in chunks."""

from __future__ import annotations

import time
import uuid
from typing import Any

from lira_serve import sse
from lira_serve.asked import Event

_TOLD_ONCE = ("masks", "content", "logprobs", "usage", "cache", "type", "t")


class ChatReply:
    """One response: its id, and the shapes that its events take."""

    def __init__(self, model: str) -> None:
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self._model = model
        self._created = int(time.time())

    def whole(self, finish: Event) -> dict[str, Any]:
        """Return the response for the last event of an answer."""
        lira = {name: value for name, value in finish.items() if name not in _TOLD_ONCE}
        lira["masks"] = finish["masks"]
        message = {"role": "assistant", "content": finish["content"], "refusal": None, "lira": lira}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": _logprobs(finish["logprobs"]),
            "finish_reason": finish["finish_reason"],
        }
        return self._envelope("chat.completion", [choice]) | {"usage": usage(finish)}

    def opening(self) -> bytes:
        """Return the first chunk."""
        return self._chunk({"role": "assistant", "content": ""})

    def chunk(self, event: Event) -> bytes:
        """Return the chunk of an event that is not the last."""
        if event["type"] != "text":
            return self._chunk({}, event)
        delta = {"content": event["text"]} if event["text"] else {}
        told = {name: value for name, value in event.items() if name not in ("text", "logprob")}
        logprobs = None if event.get("logprob") is None else _logprobs([event])
        return self._chunk(delta, told, logprobs=logprobs)

    def closing(self, finish: Event, with_usage: bool) -> bytes:
        """Return the chunks of the last event: finish reason, usage if asked for, end."""
        told = {name: value for name, value in finish.items() if name not in _TOLD_ONCE}
        told |= {"type": "finish", "t": finish["t"]}
        told["masks"] = [{k: v for k, v in mask.items() if k != "rle"} for mask in finish["masks"]]
        chunks = self._chunk({}, told, finish_reason=finish["finish_reason"])
        if with_usage:
            chunks += sse.event(self._envelope("chat.completion.chunk", []) | {"usage": usage(finish)})
        return chunks + sse.event("[DONE]")

    def _chunk(
        self,
        delta: dict[str, Any],
        lira: Event | None = None,
        finish_reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        data = self._envelope("chat.completion.chunk", [choice])
        # No chunk has an SSE name: openai's 4.104 for Node and 1.60 for Python take named ones for no chunks.
        return sse.event(data if lira is None else data | {"lira": lira})

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }


def usage(finish: Event) -> dict[str, Any]:
    """Return OpenAI's usage object. A token here is a row of the sequence, those of the image included."""
    rows = finish["usage"]
    return {
        "prompt_tokens": rows["prompt_tokens"],
        "completion_tokens": rows["completion_tokens"],
        "total_tokens": rows["prompt_tokens"] + rows["completion_tokens"],
        "prompt_tokens_details": {"cached_tokens": rows["cached_tokens"]},
    }


def _logprobs(tokens: list[Event] | None) -> dict[str, Any] | None:
    """Return OpenAI's logprobs object of text events; None where nobody asked."""
    if tokens is None:
        return None
    content = [
        {
            "token": token["token"],
            "logprob": token["logprob"],
            "bytes": list(token["token"].encode()),
            "top_logprobs": [],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}
