"""One line of JSON for each request, without its picture and question."""

from __future__ import annotations

import json
import sys
import time
import traceback
import uuid
from datetime import datetime, timezone
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lira_serve.api_errors import ApiError
from lira_serve.metrics import Metrics
from lira_serve.replies import error_response

NOTES = "lira.notes"
"""Key of the request's scope: a dict in which an endpoint notes what the line says besides."""


class RequestLog:
    """ASGI middleware: logs and counts requests, and turns what nobody caught into a 500."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, paths: frozenset[str], out: TextIO | None = None
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths
        self._out = out

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        notes: dict[str, Any] = {}
        scope[NOTES] = notes
        name = uuid.uuid4().hex
        status = 0

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        try:
            await self._app(scope, receive, note)
        except Exception as error:
            notes["error"] = f"{type(error).__name__}: {error}"
            notes["trace"] = traceback.format_exc()
            if not status:
                told = ApiError(
                    500, f"an error in the server: its log has it as request {name}", "server_error"
                )
                await error_response(told)(scope, receive, note)
        finally:
            seconds = time.perf_counter() - started
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.note_request(path, status, seconds)
            _write(
                self._out,
                {
                    "request": name,
                    "method": scope["method"],
                    "path": scope["path"][:200],
                    "status": status,
                    "seconds": round(seconds, 4),
                    **notes,
                },
            )


def log_failure(error: BaseException) -> None:
    """Write what ended the server."""
    trace = "".join(traceback.format_exception(error))
    _write(None, {"error": f"{type(error).__name__}: {error}", "trace": trace})


def _write(out: TextIO | None, line: dict[str, Any]) -> None:
    out = out or sys.stderr
    time_of_day = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    out.write(json.dumps({"time": time_of_day, **line}, default=str) + "\n")
    out.flush()
