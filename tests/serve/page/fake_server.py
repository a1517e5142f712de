"""A server that plays answers: what no real one does on demand (slow, busy, gone in the middle).

It serves the page's own files under the page's policy, and streams of the real one's form, which
test_real_server.py reads, with masks whose pixels are known.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from pycocotools import mask as coco
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

PAGE = Path(__file__).parents[3] / "serve" / "lira_serve" / "page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
MODEL = {
    "id": "lira-fake",
    "object": "model",
    "lira": {
        "target": "cpu",
        "precision": "fp32",
        "context": 640,
        "max_tiles": 1,
        "tasks": {
            "refseg": {"needs_text": True, "question": "Please segment {expression}."},
            "gcg": {"needs_text": False, "question": "Describe the image with masks."},
            "vqa": {"needs_text": True, "question": "{expression}"},
            "caption": {"needs_text": False, "question": "Provide a short description of this image."},
        },
    },
}
Chunk = tuple[float, str]  # seconds to wait before it, and its lines


def disc(height: int, width: int, x: float, y: float, radius: float, hole: float = 0.0) -> np.ndarray:
    """[H, W] bool: a disc, with a round hole in its middle."""
    row, column = np.ogrid[:height, :width]
    distance = np.hypot(column + 0.5 - x, row + 0.5 - y)
    return (distance <= radius) & (distance >= hole)


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}


def chunk(delta: dict[str, Any], lira: dict[str, Any] | None = None, finish: str | None = None) -> str:
    """Return the lines of one chunk, with an event of LIRA or without."""
    body: dict[str, Any] = {
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }
    if lira is not None:
        body["lira"] = lira
    return f"data: {json.dumps(body)}\n\n"


def has_event(kind: str, lines: str) -> bool:
    """Whether a chunk has an event of this type."""
    return f'"lira": {{"type": "{kind}"' in lines


def grounded(
    named: Iterable[tuple[str, str, np.ndarray | None]],
    *,
    pause: float = 0.0,
    first: float = 0.0,
    regions: bool = False,
    attributes: list[dict[str, Any]] | None = None,
) -> list[Chunk]:
    """A whole answer: (text before, phrase, its mask) each.

    pause, first: seconds before each token, and before the first. regions: as with ILVC, where the mask comes
    before its phrase, and the `[SEG]` behind the phrase repeats it.
    """
    chunks: list[Chunk] = [(0.0, chunk({"role": "assistant", "content": ""}))]
    parts = {"preprocess": 0.02, "encode_semantic": 0.04, "encode_pixel": 0.05, "sefe": 0.01}
    look = {"type": "look", "t": 0.12, "scene": "new", "timings": parts}
    chunks.append((0.0, chunk({}, look)))
    t, step, text, waits = 0.2, 0, "", first
    phrases: list[dict[str, Any]] = []
    masks: list[dict[str, Any]] = []
    areas: list[dict[str, Any]] = []
    unread: list[tuple[int, dict[str, Any]]] = []

    def say(piece: str, tag: str | None = None) -> None:
        nonlocal t, step, text, waits
        event: dict[str, Any] = {"type": "text", "t": t, "token_id": 7, "step": step}
        if tag:
            event["tag"] = tag
        chunks.append((waits, chunk({"content": piece} if piece else {}, event)))
        t, step, text, waits = t + 0.02, step + 1, text + piece, pause
        while unread:  # the model reads a [SEG] one step after it has chosen it
            of, one = unread.pop()
            t += 0.03
            chunks.append((0.0, chunk({}, {"type": "mask", "t": t, "step": of, **one})))

    def seg(mask: np.ndarray) -> int:
        say("", "[SEG]")
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
        masks.append({"id": len(masks), "box": box, "score": 0.97, "rle": rle(mask)})
        unread.append((step - 1, masks[-1]))
        return len(masks) - 1

    def name(phrase: str, mask: int) -> None:
        start = len(text) - len(phrase)
        phrases.append({"text": phrase, "start": start, "end": len(text), "mask": mask})

    def tell() -> None:
        chunks.append((0.0, chunk({}, {"type": "phrase", "t": t, **phrases[-1]})))

    for before, phrase, mask in named:
        if before:
            say(before)
        if mask is None:
            continue
        if regions:
            taken = seg(mask)
            say("", "<image_id>")
            areas.append({"mask": taken, "box": masks[taken]["box"]})
            chunks.append((0.0, chunk({}, {"type": "region", "t": t, **areas[-1]})))
            say(phrase)
            name(phrase, taken)
            say("", "</p>")
            tell()
            seg(mask)
            continue
        say(phrase)
        name(phrase, len(masks))
        seg(mask)
        say("", "</p>")
        tell()
    say("", "<|im_end|>")
    timings = {
        "queue": 0.0005, "look": parts, "prefill_tokens": 97,
        "prefill": 0.05, "ttft": 0.2, "new_tokens": step,
        "decode": [0.02] * step, "region_prefill": [], "regions": [0.02] * len(areas),
        "masks": [0.025] * len(masks), "total": 0.1, "decode_tokens_per_second": 50.0,
        "end_to_end_tokens_per_second": step / t,
    }  # fmt: skip
    final = {
        "type": "finish", "t": t, "raw_text": text, "turn": "turn-0", "phrases": phrases,
        "masks": [{key: one[key] for key in ("id", "box", "score")} for one in masks], "regions": areas,
        "attributes": attributes or [], "timings": timings, "scene": "new", "finish_reason": "stop",
        "image": {"width": 640, "height": 640, "tiles": 1, "sha256": "0" * 64},
        "history": {"turns": 0, "rows_kept": 0, "as_text": 0},
    }  # fmt: skip
    chunks.append((pause, chunk({}, {"type": "timings", "t": t, **timings})))
    chunks.append((0.0, chunk({}, final, "stop")))
    chunks.append((0.0, f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': step}})}\n\n"))
    chunks.append((0.0, "data: [DONE]\n\n"))
    return chunks


def refusal(status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None, **more}
    return JSONResponse({"error": error}, status, headers)


def stream(
    chunks: list[Chunk],
    gone: threading.Event | None = None,
    *,
    until: threading.Event | None = None,
    rest: Iterable[Chunk] = (),
) -> Response:
    """Play the chunks, and the rest once `until` is set. Sets `gone` if the client goes away before."""

    async def play() -> AsyncIterator[str]:
        ended = False
        try:
            for wait, lines in chunks:
                await asyncio.sleep(wait)
                yield lines
            while until is not None and not until.is_set():
                await asyncio.sleep(0.01)
            for _, lines in rest:
                yield lines
            ended = True
        finally:
            if gone is not None and not ended:
                gone.set()

    return StreamingResponse(play(), media_type="text/event-stream")


class FakeServer:
    """Serves the page and `reply` on a port of 127.0.0.1; `asked` holds the bodies of the questions."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.reply: Callable[[dict[str, Any]], Response] = lambda body: stream(
            grounded([("Hello.", "", None)])
        )
        self.asked: list[dict[str, Any]] = []
        self.key: str | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/page/{name}", self._page),
                Route("/v1/models", self._models),
                Route("/health/ready", lambda request: Response("ready")),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ]
        )
        config = uvicorn.Config(
            app, "127.0.0.1", self.port, log_level="critical", timeout_graceful_shutdown=0
        )
        server = self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=server.run, daemon=True)
        self._thread.start()
        for _ in range(500):
            if server.started:
                self.port = server.servers[0].sockets[0].getsockname()[1]
                return
            time.sleep(0.01)
        raise RuntimeError("the fake server has not started within 5 seconds")

    def stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join(5)

    async def _page(self, request: Request) -> Response:
        file = PAGE / request.path_params.get("name", "index.html")
        if not file.is_file():
            return Response(status_code=404)
        return FileResponse(file, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-store"})

    def _allowed(self, request: Request) -> bool:
        return self.key is None or request.headers.get("authorization") == f"Bearer {self.key}"

    async def _models(self, request: Request) -> Response:
        if not self._allowed(request):
            return refusal(401, "no API key given", code="invalid_api_key")
        return JSONResponse({"object": "list", "data": [MODEL]})

    async def _chat(self, request: Request) -> Response:
        if not self._allowed(request):
            return refusal(401, "no API key given", code="invalid_api_key")
        body = await request.json()
        self.asked.append(body)
        return self.reply(body)
