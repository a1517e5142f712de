"""A server whose answers are invented, at a pace of the test's own.

`python tests/serve/invented.py '{"steps": 40, "pace": 0.05}' serve BUNDLE --port 0` is `lira-edge serve` with
such answers; the bundle is not opened.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from lira_runtime import rle
from lira_serve.app import create_app
from lira_serve.asked import Asked, Event
from lira_serve.model_info import ModelInfo
from lira_serve.settings import Settings
from lira_serve.worker import Worker

TASKS = {"refseg": {"question": "Please segment {expression}.", "needs_text": True}}
LOOK = {"preprocess": 0.0, "encode_semantic": 0.0, "encode_pixel": 0.0, "sefe": 0.0}
TIMINGS = {"look": LOOK, "prefill": 0.0, "decode": [], "masks": [], "regions": [], "region_prefill": []}


@dataclass
class Desk:
    """Answers with `steps` tokens of `text`, `pace` seconds apart, and `masks` masks of one pixel each.

    opening, warming: seconds. gate: lets one token through at a time. A question with "fail" in it ends in an
    error of the engines after its second token; `broken` is what the warm-up raises.
    """

    steps: int = 3
    pace: float = 0.0
    text: str = "word "
    masks: int = 0
    opening: float = 0.0
    warming: float = 0.0
    broken: str = ""
    gate: threading.Semaphore | None = None
    began: list[str] = field(default_factory=list)
    ended: list[tuple[str, int]] = field(default_factory=list)  # question, tokens given

    def __post_init__(self) -> None:
        time.sleep(self.opening)
        self.info = ModelInfo("invented", "cpu", "fp32", 4096, 12, TASKS)
        self.lira = SimpleNamespace(engines=SimpleNamespace(remark=""))

    def close(self) -> None:
        pass

    def warm_up(self) -> None:
        time.sleep(self.warming)
        if self.broken:
            raise RuntimeError(self.broken)

    def answer(self, asked: Asked) -> Iterator[Event]:
        self.began.append(asked.text)
        given = 0
        try:
            yield {"type": "look", "image": {}, "scene": "new", "timings": LOOK}
            for step in range(self.steps):
                if self.gate is not None:
                    assert self.gate.acquire(timeout=60)
                time.sleep(self.pace)
                if "fail" in asked.text and step == 2:
                    raise RuntimeError("the engine broke")
                given += 1
                yield {"type": "text", "text": self.text, "token_id": step, "step": step}
            yield from self._finish(asked)
        finally:
            self.ended.append((asked.text, given))

    def _finish(self, asked: Asked) -> Iterator[Event]:
        size = (asked.image.height, asked.image.width)
        runs = {"size": list(size), "counts": _one_pixel(size)}
        masks = [{"id": n, "box": [0, 0, 1, 1], "score": 0.5, "rle": runs} for n in range(self.masks)]
        for mask in masks:
            yield {"type": "mask", **mask, "step": self.steps}
        yield {"type": "timings", **TIMINGS}
        yield {
            "type": "finish",
            "content": self.text * self.steps,
            "raw_text": "",
            "turn": None,
            "phrases": [{"text": f"<p> {n}", "start": 0, "end": 1, "mask": n} for n in range(self.masks)],
            "masks": masks,
            "regions": [],
            "attributes": [],
            "image": {"width": size[1], "height": size[0], "tiles": 1, "sha256": asked.digest},
            "scene": "new",
            "history": {"turns": len(asked.history), "rows_kept": 0, "as_text": 0},
            "timings": TIMINGS,
            "finish_reason": "stop",
            "logprobs": None,
            "usage": {"prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": self.steps},
            "cache": {"scenes": 0, "bytes": 0, "evictions": 0},
        }


def picture() -> str:
    """A small picture, as a data URI."""
    file = io.BytesIO()
    Image.new("RGB", (32, 24), (200, 90, 20)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def chat(text: str = "What is it?", **fields: Any) -> dict[str, Any]:
    """The body of a question about it."""
    parts = [{"type": "image_url", "image_url": {"url": picture()}}, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 2, **fields}


def head(line: str, *headers: str, body: bytes = b"") -> bytes:
    """A request as bytes."""
    return "\r\n".join([line, "Host: 127.0.0.1", *headers, "", ""]).encode("latin-1") + body


def refused(response: Any, status: int = 400) -> dict[str, Any]:
    """The error of a refused request."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"] and len(error["message"]) < 600
    return error


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for what happens soon."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def _one_pixel(size: tuple[int, int]) -> str:
    mask = np.zeros(size, bool)
    mask[0, 0] = True
    return str(rle.encode(mask)["counts"])


def worker(desk: Desk, settings: Settings) -> Worker[Desk, Asked]:
    """A thread that answers so."""
    return Worker(lambda: desk, Desk.warm_up, Desk.answer, settings.queue)


@contextmanager
def asking(desk: Desk, settings: Settings, log: io.StringIO | None = None) -> Iterator[TestClient]:
    """A client of an application that answers so, without a network between them."""
    engines = worker(desk, settings)
    engines.start()
    assert engines.wait_until_warm()

    async def close() -> None:
        await asyncio.to_thread(engines.close)

    app = create_app(settings, engines, desk.info, close, log or io.StringIO())
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as client:
        yield client


if __name__ == "__main__":
    from lira_engine.main import main
    from lira_serve import run

    options: dict[str, Any] = json.loads(sys.argv.pop(1))
    run.worker = lambda settings: Worker(  # type: ignore[assignment]
        lambda: Desk(**options), Desk.warm_up, Desk.answer, settings.queue
    )
    main()
