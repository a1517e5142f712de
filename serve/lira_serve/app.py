"""The application: which path leads where."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import TextIO

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from lira_serve import metrics
from lira_serve.access import Access
from lira_serve.access_log import RequestLog
from lira_serve.answers import ClientLeft
from lira_serve.api_errors import ApiError
from lira_serve.asked import Answerer
from lira_serve.body import Bodies
from lira_serve.chat import chat
from lira_serve.fetch import AllowedHosts
from lira_serve.model_info import ModelInfo
from lira_serve.picture_source import PictureSource
from lira_serve.replies import error_response, json_response
from lira_serve.segment import segment
from lira_serve.service import Service
from lira_serve.settings import Settings

_PAGE = Path(str(resources.files("lira_serve") / "page"))
_PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "cache-control": "no-cache",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def create_app(
    settings: Settings,
    answerer: Answerer,
    info: ModelInfo,
    close: Callable[[], Awaitable[None]],
    log: TextIO | None = None,
) -> Starlette:
    """Return the application. `close` is awaited when it ends; the log goes to standard error."""
    # A picture whose scene is not kept is asked about no more: no more bytes of pictures than of scenes.
    allowed = AllowedHosts.of(settings.allowed_hosts)
    pictures = PictureSource(allowed, settings.most_body, kept_bytes=settings.scene_cache)
    bodies = Bodies(settings.most_body, settings.body_seconds)
    service = Service(settings, answerer, info, pictures, bodies, metrics.Metrics())

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await close()

    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/segment", segment, methods=["POST"]),
        Route("/v1/models", _models),
        Route("/v1/models/{name:path}", _model),
        Route("/metrics", _metrics),
        Route("/health/live", _live),
        Route("/health/ready", _ready),
        Route("/", _page),
        Mount("/page", _Static(directory=_PAGE)),
    ]
    paths = frozenset(route.path for route in routes if isinstance(route, Route))
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(RequestLog, metrics=service.metrics, paths=paths, out=log),
            *_cors(settings.allowed_origins),  # before the keys: a browser asks without one first
            Middleware(Access, keys=settings.api_keys, origins=settings.allowed_origins),
        ],
        exception_handlers={ApiError: _api_error, HTTPException: _http_error, ClientLeft: _client_left},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # to an address of the client's own Host header
    app.state.service = service
    return app


def _cors(origins: tuple[str, ...]) -> list[Middleware]:
    """Return what lets other sites' pages ask (Fetch standard, CORS); nothing without such sites."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),  # openai's package has headers of its own
            expose_headers=("retry-after", "x-request-id"),
        )
    ]


async def _models(request: Request) -> Response:
    info: ModelInfo = request.app.state.service.info
    return json_response({"object": "list", "data": [info.as_dict()]})


async def _model(request: Request) -> Response:
    info: ModelInfo = request.app.state.service.info
    info.check_name(request.path_params["name"])
    return json_response(info.as_dict())


async def _metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    answerer = service.answerer
    text = service.metrics.text(answerer.waiting, answerer.answering, answerer.ready)
    return Response(text, media_type=metrics.CONTENT_TYPE)


async def _live(request: Request) -> Response:
    return PlainTextResponse("live\n")


async def _ready(request: Request) -> Response:
    ready = request.app.state.service.answerer.ready
    return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)


async def _page(request: Request) -> Response:
    return FileResponse(_PAGE / "index.html", headers=_PAGE_HEADERS)


class _Static(StaticFiles):
    """The page's files."""

    async def get_response(self, path: str, scope) -> Response:  # type: ignore[no-untyped-def]
        response = await super().get_response(path, scope)
        response.headers.update(_PAGE_HEADERS)
        return response


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.scope['path'][:80]}"  # request.url would read the Host header
    told = ApiError(
        error.status_code, f"{where}: {error.detail}; expected a path and method of docs/serve.md"
    )
    return JSONResponse(told.body(), error.status_code, headers=error.headers)


async def _client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's number, for the log alone
