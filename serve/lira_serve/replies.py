"""Responses as JSON."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from lira_serve.api_errors import ApiError


def error_response(error: ApiError) -> JSONResponse:
    """Return OpenAI's error object, with the status and headers of the error."""
    return JSONResponse(error.body(), error.status, headers=error.headers())


def json_response(contents: dict[str, Any]) -> JSONResponse:
    """Return a response that no cache keeps."""
    return JSONResponse(contents, headers={"cache-control": "no-store"})
