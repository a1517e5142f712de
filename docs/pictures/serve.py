"""Takes the pictures of docs/serve.md: `python docs/pictures/serve.py bundles/lira-nano`.

It serves the bundle (built for the CPU), asks as people do in the system's Chromium, and writes serve-*.png
beside itself, each below 300 KB. It needs the extra `serve`, playwright, /usr/bin/chromium, and the typeface
Inter (Debian: fonts-inter) if the pictures are to look as they do here. Times on them are this machine's.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

HERE = Path(__file__).parent
PICTURE = HERE.parents[1] / "assets" / "sample.png"
SIZE = {"width": 1200, "height": 860}


@contextmanager
def served(bundle: str) -> Iterator[str]:
    """Serve the bundle at a free port; yield the page's address."""
    command = [
        sys.executable,
        "-c",
        "from lira_engine.main import main; main()",
        "serve",
        bundle,
        "--port",
        "0",
    ]
    server = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        address = re.search(r"http://\S+", line)
        assert address is not None, f"the server said {line!r}, expected its address: is the bundle built?"
        yield address[0]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def opened(browser: Browser, address: str, scheme: str) -> Page:
    """Open the page with the picture."""
    page = browser.new_page(viewport=SIZE, color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(address)
    page.wait_for_selector("#connection[data-state=ready]")
    page.set_input_files("#file", PICTURE)
    page.wait_for_selector("#masks:visible")
    return page


def ask(page: Page, task: str, text: str = "") -> None:
    page.check(f"input[value={task}]", force=True)
    if text:
        page.fill("#question", text)
    page.click("#ask")
    page.wait_for_selector("#answer:not(.running)")
    page.mouse.move(2, 2)
    page.evaluate("document.activeElement.blur()")


def shoot(page: Page, name: str) -> None:
    page.evaluate("document.querySelector('.side').scrollTop = 0")
    page.wait_for_timeout(1200)  # masks and bars have come to rest
    file = HERE / f"serve-{name}.png"
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(file, optimize=True)
    print(file, file.stat().st_size)


def main(bundle: str) -> None:
    with served(bundle) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = opened(browser, address, "light")
        ask(page, "gcg")
        ask(page, "refseg", "the orange star")
        page.click(".earlier-row >> nth=1")  # the answer that paid for the look
        page.check("input[value=gcg]", force=True)
        shoot(page, "light")
        page.close()
        page = opened(browser, address, "dark")
        ask(page, "refseg", "the yellow circle")
        ask(page, "gcg")
        page.hover(".phrase >> nth=1")
        shoot(page, "dark")
        page.close()
        page = opened(browser, address, "light")
        page.fill("#words", "red, orange, yellow, blue")
        ask(page, "gcg")
        shoot(page, "attributes")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
