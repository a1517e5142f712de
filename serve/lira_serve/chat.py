"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from lira_serve import sse
from lira_serve.access_log import NOTES
from lira_serve.answers import finished, noted, noted_error
from lira_serve.asked import Answering
from lira_serve.body import json_object
from lira_serve.chat_reply import ChatReply
from lira_serve.chat_request import ChatRequest, parse
from lira_serve.conversation import asked_of
from lira_serve.replies import json_response
from lira_serve.service import Service


async def chat(request: Request) -> Response | sse.EventStream:
    """Answer a conversation, whole or as server-sent events."""
    service: Service = request.app.state.service
    service.answerer.check_room()  # before a body is read for nothing
    async with service.bodies.of(request) as body:
        wanted: ChatRequest = parse(ChatRequest, json_object(body))
        service.info.check_name(wanted.model)
        asked = await asked_of(wanted, service.pictures, service.info)
    answering = noted(service.answerer.submit(asked), request, service, asked)
    reply = ChatReply(service.info.name)
    if wanted.stream:
        with_usage = wanted.stream_options is not None and bool(wanted.stream_options.include_usage)
        chunks = _chunks(reply, answering, with_usage, request.scope[NOTES])
        return sse.EventStream(chunks, answering.cancel, service.settings.send_seconds)
    finish = await finished(request, answering)
    return json_response(reply.whole(finish))


async def _chunks(
    reply: ChatReply, answering: Answering, with_usage: bool, notes: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    try:
        async for event in answering:
            if event["type"] == "started":
                yield reply.opening()
            elif event["type"] == "finish":
                yield reply.closing(event, with_usage)
            else:
                yield reply.chunk(event)
    except Exception as error:
        yield sse.event(noted_error(error, notes).body(), "error")
