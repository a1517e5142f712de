"""An answer's events on their way to a response: noted for metrics and log, and given up with the client."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request

from lira_engine.errors import BundleChanged, DeviceFailed, LiraError, OutOfMemory
from lira_serve.access_log import NOTES
from lira_serve.api_errors import ApiError, changed
from lira_serve.asked import Answering, Asked, Event
from lira_serve.service import Service
from lira_serve.sse import disconnected


class ClientLeft(Exception):
    """The client closed its connection: nobody reads the response."""


class _Noted:
    def __init__(self, answering: Answering, service: Service, notes: dict[str, Any]) -> None:
        self._answering = answering
        self._service = service
        self._notes = notes
        self._begun = False
        self._queue = 0.0
        self._over = False

    async def __aiter__(self) -> AsyncIterator[Event]:
        try:
            async for event in self._answering:
                self._note(event)
                yield self._with_queue(event)
        except Exception as error:
            self._over = True
            raise noted_error(error, self._notes, self._begun) from error

    def hold(self) -> None:
        self._answering.hold()

    def cancel(self) -> None:
        if not self._over:
            self._over = True
            self._notes["left"] = True
            self._service.metrics.note_abandoned()
        self._answering.cancel()

    def _with_queue(self, event: Event) -> Event:
        """Return the event; where it tells timings, with the time that the question waited."""
        match event["type"]:
            case "started":
                self._queue = event["queue"]
            case "timings":
                return {**event, "queue": self._queue}
            case "finish":
                return {**event, "timings": {**event["timings"], "queue": self._queue}}
        return event

    def _note(self, event: Event) -> None:
        self._service.metrics.note_event(event)
        match event["type"]:
            case "started":
                self._notes["queue"] = round(event["queue"], 4)
                if "replica" in event:
                    self._notes["replica"] = event["replica"]
            case "look":
                self._notes["scene"] = event["scene"]
            case "text" if event["step"] == 0:
                self._begun = True
                self._notes["ttft"] = round(event["t"], 4)
            case "finish":
                self._over = True
                self._notes |= event["usage"] | {
                    "masks": len(event["masks"]),
                    "finish": event["finish_reason"],
                }


def noted(answering: Answering, request: Request, service: Service, asked: Asked) -> Answering:
    """Return the same answer, whose events are counted and noted for the request's line in the log."""
    notes = request.scope[NOTES]
    if service.settings.log_questions:
        notes |= {"question": asked.text, "image": asked.digest}
    return _Noted(answering, service, notes)


async def finished(request: Request, answering: Answering) -> Event:
    """Return an answer's last event. Raises ApiError, and ClientLeft if the client goes away before."""
    answering.hold()
    reading = asyncio.ensure_future(_last(answering))
    gone = asyncio.ensure_future(disconnected(request.receive))
    try:
        await asyncio.wait({reading, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            raise ClientLeft
        return reading.result()
    finally:
        gone.cancel()
        reading.cancel()
        answering.cancel()


async def _last(answering: Answering) -> Event:
    last: Event | None = None
    async for event in answering:
        last = event
    assert last is not None, "an answer has events"
    return last


def noted_error(error: Exception, notes: dict[str, Any], begun: bool = True) -> ApiError:
    """Return what a client is told about an error; the request's line in the log says more.

    begun: whether the answer has begun: what the request was to blame for would have been told before.
    """
    if isinstance(error, ApiError):
        told = error
    elif isinstance(error, OutOfMemory):
        told = ApiError(503, str(error), "server_error", code="out_of_memory", retry_after=10)
    elif isinstance(error, BundleChanged):  # the server's paths are none of the client's business
        told = changed()
    elif isinstance(error, LiraError):
        ours = begun or isinstance(error, DeviceFailed)
        told = ApiError(500, str(error), "server_error") if ours else ApiError(400, str(error))
    else:
        told = ApiError(500, "an error in the server: its log says more", "server_error")
    if told.status == 500 and told is not error:
        notes["trace"] = "".join(traceback.format_exception(error))
    # What a request is refused for may quote its question.
    notes["error"] = told.message if told.status >= 500 else told.code or told.type
    return told
