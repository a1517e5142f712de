"""Errors as OpenAI's clients expect them."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """An error with its HTTP status: one line with what was found and what was expected.

    `type` and `code` are OpenAI's words, from which clients choose their exception; `param` names the field.
    `retry_after`: seconds after which it may work, for a 503.
    """

    def __init__(
        self,
        status: int,
        message: str,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(status, message, type, param, code, retry_after)  # so it can be pickled
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        found = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": found}

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to the error."""
        found = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return found | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def changed() -> ApiError:
    """Return the 503 of a server whose bundle was changed while it was open: it ends, to be started again."""
    return ApiError(
        503,
        "files of the model changed on the server's disk: the server ends, ask again once it was restarted",
        "server_error",
        code="bundle_changed",
        retry_after=10,
    )


def busy(message: str, retry_after: int) -> ApiError:
    """Return the 503 of a server that cannot answer now."""
    return ApiError(503, message, "server_error", code="busy", retry_after=retry_after)
