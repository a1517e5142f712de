"""Servers of lira-nano: one in this process for all tests, and others as processes of their own."""

from __future__ import annotations

import asyncio
import base64
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from lira_engine.build import build
from lira_runtime import Lira
from lira_serve import server
from lira_serve.app import create_app
from lira_serve.engines import worker
from lira_serve.settings import Settings

sys.path.insert(0, str(Path(__file__).parent))  # for `invented`

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "assets" / "sample.png"
WAIT = 60.0


def data_uri(picture: Path | Image.Image = SAMPLE) -> str:
    """A picture as clients send it."""
    if isinstance(picture, Image.Image):
        file = io.BytesIO()
        picture.save(file, format="PNG")
        data = file.getvalue()
    else:
        data = picture.read_bytes()
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def question(text: str, picture: str | None = None) -> dict[str, Any]:
    """A user's message, with a picture or without."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
    if picture:
        parts.insert(0, {"type": "image_url", "image_url": {"url": picture}})
    return {"role": "user", "content": parts}


@dataclass
class Served:
    """A server that listens on this machine."""

    url: str
    log: io.StringIO = field(default_factory=io.StringIO)
    worker: Any = None
    announced: str = ""  # by a process

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=WAIT, **options)

    def connect(self, **options: Any) -> socket.socket:
        """A connection, for what no HTTP client sends."""
        address = urlsplit(self.url)
        return socket.create_connection((address.hostname, address.port), timeout=WAIT, **options)

    def raw(self, request: bytes, method: str = "POST") -> tuple[int, bytes] | None:
        """Send bytes; return the response's status and body, or None where there is none."""
        with self.connect() as connection:
            try:
                connection.sendall(request)
                response = http.client.HTTPResponse(connection, method=method)
                response.begin()
                return response.status, response.read()
            except (ConnectionError, http.client.HTTPException):
                return None

    def chat(self, text: str, picture: str | None = None, **fields: Any) -> dict[str, Any]:
        """Ask one question; return the response."""
        body = {"messages": [question(text, picture or data_uri())], **fields}
        with self.client() as client:
            response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def stream(self, text: str, picture: str | None = None, **fields: Any) -> list[dict[str, Any]]:
        """Ask one question; return the chunks of its answer."""
        body = {"messages": [question(text, picture or data_uri())], "stream": True, **fields}
        with self.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
            assert response.status_code == 200
            lines = [line for line in response.iter_lines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@dataclass
class Talk:
    """A conversation as a client has it: it gives back what it got."""

    server: Any
    image: Image.Image
    picture: str  # as a data URI
    messages: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, text: str, picture: bool | None = None, **options: Any) -> dict[str, Any]:
        """Ask the next question, with the picture in the first message unless `picture` says otherwise."""
        parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if picture or (picture is None and not self.messages):
            parts.insert(0, {"type": "image_url", "image_url": {"url": self.picture}})
        self.messages.append({"role": "user", "content": parts})
        found = self.post(self.messages, **options)
        self.messages.append(found["choices"][0]["message"])
        return found

    def post(self, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        body = {"messages": messages, **({"lira": options} if options else {})}
        with self.server.client() as client:
            response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def another(self, messages: Sequence[dict[str, Any]] = ()) -> Talk:
        """Another conversation about the same picture, that has so far gone as `messages`."""
        return replace(self, messages=list(messages))


@contextmanager
def serving(settings: Settings, open_worker: Callable[[Settings], Any] = worker) -> Iterator[Served]:
    """A server in a thread of this process. `open_worker`: a worker of the test's own."""
    engines = open_worker(settings)
    desk = engines.start()
    assert engines.wait_until_warm(), engines.failure
    log = io.StringIO()

    async def close() -> None:
        await asyncio.to_thread(engines.close)

    app = create_app(settings, engines, desk.info, close, log)
    with server.listen("127.0.0.1", 0) as listener:
        over = threading.Event()
        arguments = (app, listener, settings, engines.drain, over.is_set)
        thread = threading.Thread(target=server.serve, args=arguments, daemon=True)
        thread.start()
        try:
            yield Served(server.address(listener), log, engines)
        finally:
            over.set()
            thread.join(WAIT)
            assert not thread.is_alive()


@contextmanager
def process(bundle: Path, *options: str) -> Iterator[Served]:
    """`lira-edge serve` as a process, warmed up, at a free port. Ends it with SIGTERM."""
    command = [sys.executable, "-c", "from lira_engine.main import main; main()", "serve", str(bundle)]
    running = subprocess.Popen(
        [*command, "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert running.stdout and running.stderr
    log = io.StringIO()
    threading.Thread(target=lambda: [log.write(line) for line in running.stderr], daemon=True).start()
    try:
        line = running.stdout.readline()
        address = re.search(r"http://\S+", line)
        assert address, (line, log.getvalue())
        yield Served(address[0], log, running, line)
    finally:
        if running.poll() is None:
            running.send_signal(signal.SIGTERM)
            running.wait(WAIT)


@pytest.fixture(scope="session")
def nano(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lira-nano with engines for this CPU. To be read only."""
    folder = shutil.copytree(nano_bundle, tmp_path_factory.mktemp("nano") / "bundle")
    build(folder, target="cpu")
    return folder


@pytest.fixture(scope="session")
def nano_settings(nano: Path) -> Settings:
    return Settings(nano)


@pytest.fixture(scope="session")
def served(nano_settings: Settings) -> Iterator[Served]:
    """A server of lira-nano for all tests that leave it as it was."""
    with serving(nano_settings) as server:
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    """A client of it."""
    with served.client() as client:
        yield client


@pytest.fixture(scope="session")
def lira(nano: Path) -> Iterator[Lira]:
    """The same model in this process, without a server: what answers are compared with."""
    with Lira.open(nano) as opened:
        yield opened


@pytest.fixture(scope="session")
def sample() -> str:
    """The path of the picture that tests ask about."""
    return str(SAMPLE)


@pytest.fixture(scope="session")
def pictures(sample: str) -> Iterator[Image.Image]:
    """The sample again and again, each time with another dot: the scene of each is new."""

    def dotted(number: int) -> Image.Image:
        image = Image.open(sample).convert("RGB")
        image.putpixel((number, 0), (1, 2, 3))
        return image

    return map(dotted, range(640))


@pytest.fixture
def talk(served: Any, pictures: Iterator[Image.Image]) -> Callable[[], Talk]:
    """Conversations, each about a picture that nobody asked about before."""

    def begin() -> Talk:
        image = next(pictures)
        return Talk(served, image, data_uri(image))

    return begin


@pytest.fixture(scope="session")
def serve() -> SimpleNamespace:
    """The functions above: test modules cannot import each other."""
    return SimpleNamespace(
        serving=serving, process=process, data_uri=data_uri, question=question, sample=SAMPLE, wait=WAIT
    )
