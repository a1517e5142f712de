"""A browser, tabs of it that are watched, and the server that plays answers."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

SIDE = 320  # pixels of the pictures here
CHROMIUM = Path("/usr/bin/chromium")


class Tab:
    """A tab with the page: playwright's, and what people do there."""

    def __init__(self, tab: Any) -> None:
        self._tab = tab

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tab, name)

    def take(self, data: bytes | None = None, name: str = "grey.png", kind: str = "image/png") -> None:
        """Choose a picture, as the button's dialog does; a grey one if none is given."""
        file = {"name": name, "mimeType": kind, "buffer": grey() if data is None else data}
        self.set_input_files("#file", file)
        self.wait_for_selector("#masks:visible")

    def ask(self, text: str = "", task: str = "gcg") -> None:
        self.check(f"input[name=task][value={task}]", force=True)
        if text:
            self.fill("#question", text)
        self.click("#ask")

    def done(self) -> None:
        """Wait for the end of the answer, and until nothing on the picture moves."""
        self.wait_for_selector("#answer:not(.running)")
        self.settled()

    def settled(self) -> None:
        self.evaluate(
            """() => new Promise((resolve) => {
              const canvas = document.getElementById("masks");
              let before = "";
              const look = () => {
                const now = canvas.toDataURL();
                if (now === before) resolve();
                else { before = now; setTimeout(look, 60); }
              };
              look();
            })"""
        )

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what masks are decoded or drawn for."""
        for _ in range(500):
            if condition():
                return
            self.wait_for_timeout(10)
        raise AssertionError("it did not come about in 5 s")

    def pixel(self, x: float, y: float) -> list[int]:
        """Return RGBA of what is drawn over pixel (x, y) of the picture."""
        found: list[int] = self.evaluate(
            """([x, y]) => {
              const canvas = document.getElementById("masks");
              const at = [Math.round(x * canvas.width), Math.round(y * canvas.height)];
              return [...canvas.getContext("2d").getImageData(...at, 1, 1).data];
            }""",
            [x / SIDE, y / SIDE],
        )
        return found

    def another(self) -> Tab:
        """Open the page in one more tab of the same profile."""
        return opened(self._tab.context, self.url)

    def point_at(self, x: float, y: float) -> None:
        """Move the pointer to pixel (x, y) of the picture."""
        box = self.locator("#masks").bounding_box()
        self.mouse.move(box["x"] + x / SIDE * box["width"], box["y"] + y / SIDE * box["height"])


def opened(context: Any, url: str, state: str = "ready") -> Tab:
    tab = context.new_page()
    tab.set_default_timeout(5000)
    tab.goto(url)
    tab.wait_for_selector(f"#connection[data-state={state}]")
    return Tab(tab)


def grey(ink: tuple[int, int, int] = (120, 120, 120)) -> bytes:
    """A picture in one colour, as a PNG file."""
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), ink).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The system's Chromium, without a window; one for the tests of a file.

    Later tests could not run event loops of their own beside it.
    """
    if not CHROMIUM.is_file():
        assert "CI" not in os.environ, (
            f"there is no {CHROMIUM}; expected it where CI is set: install chromium"
        )
        pytest.skip(f"there is no {CHROMIUM}")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A browser's profile, and what its tabs must not do: complain, break the policy, ask elsewhere."""

    def __init__(self, browser: Any, origin: str, **options: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 860}, **options)
        self.origin = origin
        self.complaints: list[str] = []
        self.elsewhere: list[str] = []
        self.context.on("request", self._asked)
        self.context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        self.context.on("console", self._said)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.origin, "blob:" + self.origin, "data:")):
            self.elsewhere.append(request.url)

    def _said(self, message: Any) -> None:
        # A request that fails is written there by the browser itself, and is meant where it happens; and the
        # tests read pixels often.
        expected = ("Failed to load resource", "willReadFrequently")
        if message.type in ("error", "warning") and not any(one in message.text for one in expected):
            self.complaints.append(message.text)

    def open(self, state: str) -> Tab:
        """Return a tab with the page, in a state of its connection."""
        return opened(self.context, self.origin, state)


@pytest.fixture(scope="session")
def play() -> ModuleType:
    """What makes replies of the fake server."""
    spec = importlib.util.spec_from_file_location("fake_server", Path(__file__).with_name("fake_server.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules["fake_server"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake(play: ModuleType) -> Iterator[Any]:
    server = play.FakeServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def picture() -> Callable[..., bytes]:
    return grey


@pytest.fixture
def shapes(play: ModuleType) -> list[np.ndarray]:
    """A disc, a ring and a disc on such a picture."""
    return [
        play.disc(SIDE, SIDE, 80, 80, 50),
        play.disc(SIDE, SIDE, 230, 100, 60, hole=25),
        play.disc(SIDE, SIDE, 160, 250, 40),
    ]


@pytest.fixture
def three(shapes: list[np.ndarray]) -> list[tuple[str, str, np.ndarray | None]]:
    """An answer with three masks, for `play.grounded`."""
    return [
        ("", "a star", shapes[0]),
        (", ", "a ring", shapes[1]),
        (" and ", "a dot", shapes[2]),
        (".", "", None),
    ]


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Tab]]:
    """A function: a server's address -> a tab, where nothing fades unless motion is asked for.

    Fails at the end if the page complained or asked elsewhere.
    """
    contexts: list[Watched] = []

    def open(url: str, state: str = "ready", **options: Any) -> Tab:
        contexts.append(Watched(chromium, url, **{"reduced_motion": "reduce"} | options))
        return contexts[-1].open(state)

    yield open
    for context in contexts:
        context.context.close()
        assert context.complaints == [] and context.elsewhere == []
