"""Who may ask: API keys; without one, programs on this machine, but no page of another origin.

A page in somebody's browser can send requests to 127.0.0.1. So without a key the Host header must name this
machine (else a foreign name could be pointed at it), and an Origin header must be that of the same host, or
one that was allowed.
"""

from __future__ import annotations

import hmac
import ipaddress
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lira_engine.errors import LiraError
from lira_serve.api_errors import ApiError
from lira_serve.replies import error_response

_OPEN = ("/health/live", "/health/ready")
_GUARDED = ("/v1/", "/metrics")
_LEAST_KEY = 16
_PORTS = {"http": 80, "https": 443}


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_host(host: str, keys: tuple[str, ...]) -> None:
    """Raises LiraError if others could ask without a key."""
    if not keys and not is_loopback(host):
        raise LiraError(
            f"--host {host} lets other machines ask; expected --api-key-file FILE with it, or a loopback "
            "address such as 127.0.0.1"
        )


def read_keys(path: Path) -> tuple[str, ...]:
    """Return the keys of a file, one a line. Raises LiraError if there are none, or one is easily guessed."""
    try:
        lines = path.read_text(encoding="ascii").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise LiraError(f"--api-key-file {path} cannot be read: {error}") from None
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys or min(map(len, keys)) < _LEAST_KEY:
        raise LiraError(
            f"--api-key-file {path} has {len(keys)} keys, the shortest of {min(map(len, keys), default=0)} "
            f"characters; expected one a line, of {_LEAST_KEY} or more: openssl rand -hex 32 > FILE"
        )
    return keys


def check_origin(origin: str) -> None:
    """Raises LiraError for what no browser sends as Origin."""
    try:
        parts = urlsplit(origin)
        is_one = parts.scheme in _PORTS and origin == f"{parts.scheme}://{parts.netloc}".lower()
        is_one = is_one and bool(parts.hostname) and "@" not in origin
        is_one = is_one and parts.port != _PORTS[parts.scheme]
    except ValueError:
        is_one = False
    if not is_one:
        raise LiraError(
            f"--allow-origin is {origin!r}; expected what a browser sends: scheme, host in small letters and "
            "a port other than the scheme's own, such as https://chat.example.org or http://localhost:3000"
        )


class Access:
    """ASGI middleware that lets through what may ask."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...], origins: tuple[str, ...] = ()) -> None:
        self._app = app
        self._origins = origins
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            try:
                self._check(scope["path"], Headers(scope=scope))
            except ApiError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, path: str, headers: Headers) -> None:
        if self._keys:
            if path.startswith(_GUARDED):
                self._check_key(headers.get("authorization", ""))
            return
        host = headers.get("host", "")
        if not is_loopback(_name(host)):
            raise ApiError(
                403, f"the Host header is {host[:80]!r}; expected this machine's loopback name or address"
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host and origin not in self._origins:
            raise ApiError(
                403,
                f"a page of {origin[:80]!r} asks; expected the server's own, or one of --allow-origin",
            )

    def _check_key(self, given: str) -> None:
        scheme, _, key = given.partition(" ")
        fits = [hmac.compare_digest(key.strip().encode(), known) for known in self._keys]
        if scheme.lower() != "bearer" or not any(fits):
            raise ApiError(
                401,
                "the request has no valid API key; expected the header Authorization: Bearer KEY",
                "authentication_error",
                code="invalid_api_key",
            )


def _name(host: str) -> str:
    """Return a Host header's name, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
