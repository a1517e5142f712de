"""docs/serve.md is true: its blocks are run in order against a real server, its tables are the code's.

Of a block whose first line says that it needs a network, a GPU or Docker, was not run, or is run by another
test, only the options are checked. A block of text behind a block of commands is what these print.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from lira_serve import cli
from lira_serve.chat_request import ChatRequest, LiraOptions
from lira_serve.metrics import Metrics
from lira_serve.segment import SegmentRequest
from lira_serve.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
MARK = re.compile(r"# (needs (a network|a GPU|Docker)\b|not run\b|takes \d+ minutes|tests/\S+ runs this)")
NOT_RUN = ("nginx", "ini", "yaml", "text")
ADDRESS = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Block:
    """A fenced block: its first line's number, its language, its text, and what it prints."""

    number: int
    language: str
    text: str
    prints: str | None

    @property
    def is_marked(self) -> bool:
        return MARK.match(self.text) is not None

    @property
    def commands(self) -> list[str]:
        """Its lines that are commands of the distribution."""
        return [line for line in self.text.splitlines() if line.startswith(("lira-edge ", "pip "))]


def blocks() -> Iterator[Block]:
    fences = re.finditer(r"^```(\w*)\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", PAGE, re.MULTILINE | re.DOTALL)
    for fence in fences:
        yield Block(PAGE.count("\n", 0, fence.start()) + 2, fence[1], fence[2], fence[3])


FIRST, *BLOCKS = [block for block in blocks() if block.language not in NOT_RUN]
RUN = [block for block in BLOCKS if not block.is_marked]


def name(block: Block) -> str:
    return f"line-{block.number}"


def test_the_page_has_blocks() -> None:
    assert FIRST.text.startswith("lira-edge serve BUNDLE")
    assert len(RUN) >= 9 and sum(block.prints is not None for block in RUN) >= 6
    assert sum(block.language == "python" for block in RUN) == 1
    assert {block.language for block in blocks()} <= {"", "python", *NOT_RUN}


@pytest.mark.parametrize("command", [line for block in BLOCKS for line in block.commands])
def test_options_of_a_command(command: str, check_options: Callable[[list[str]], None]) -> None:
    check_options(shlex.split(command))


def test_the_options_of_the_first_block_exist(check_options: Callable[[list[str]], None]) -> None:
    words = re.sub(r"[\[\]]", "", FIRST.text).replace("T ", "cpu ").replace("P ", "fp32 ")
    check_options(shlex.split(words))


def test_every_option_is_on_the_page() -> None:
    app = typer.Typer(add_completion=False)
    app.command()(cli.serve)
    options = [name for one in typer.main.get_command(app).params for name in one.opts if name[0] == "-"]
    assert len(options) > 10
    assert [name for name in options if name not in PAGE] == []


# Blocks


@dataclass
class Terminal:
    """A folder like a clone, and the server that was started last."""

    folder: Path
    bundle: Path
    process: Callable[..., Any]
    stack: ExitStack = field(default_factory=ExitStack)
    url: str = ""

    def serve(self, command: str) -> None:
        """Start what a line starts, at a free port of this machine."""
        program, verb, bundle, *options = shlex.split(command)
        assert (program, verb, bundle) == ("lira-edge", "serve", "bundles/lira-nano")
        options = ["127.0.0.1" if option == "0.0.0.0" else option for option in options]
        options = [str(self.folder / one) if (self.folder / one).is_file() else one for one in options]
        server = self.stack.enter_context(self.process(self.bundle, *options))
        self.url = server.url
        assert f"`{server.announced.strip().replace(self.url, ADDRESS)}`" in PAGE

    def run(self, text: str) -> str:
        """Run commands; return what they print."""
        script = f"set -e -o pipefail\n{text.replace(ADDRESS, self.url)}"
        return self.done(["bash", "-c", script])

    def python(self, text: str) -> str:
        return self.done([sys.executable, "-c", text.replace(ADDRESS, self.url)])

    def done(self, command: list[str]) -> str:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        found = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120
        )
        assert found.returncode == 0, found.stderr
        return found.stdout


@pytest.fixture(scope="module")
def terminal(
    nano: Path, tmp_path_factory: pytest.TempPathFactory, serve: SimpleNamespace
) -> Iterator[Terminal]:
    folder = tmp_path_factory.mktemp("clone")
    (folder / "assets").symlink_to(ROOT / "assets")
    opened = Terminal(folder, nano, serve.process)
    with opened.stack:
        yield opened


@pytest.mark.parametrize("block", RUN, ids=name)
def test_block_runs(block: Block, terminal: Terminal) -> None:
    """`export` and `build` are the README's, and run by its test; here their result is there."""
    if block.language == "python":
        printed = terminal.python(block.text)
        assert printed.count("mask") == 8 and "a yellow circle and a fish." in printed
        assert int(printed.splitlines()[-1].split()[0]) > 100
        return
    missing = [tool for tool in ("curl", "jq", "openssl") if tool in block.text and not shutil.which(tool)]
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    lines = block.text.splitlines(keepends=True)
    printed = terminal.run("".join(line for line in lines if not line.startswith("lira-edge ")))
    for line in lines:
        if line.startswith("lira-edge serve "):
            terminal.serve(line)
    if block.prints is not None:
        assert printed == block.prints
    check_files(terminal.folder, block)


def check_files(folder: Path, block: Block) -> None:
    if "star.png" in block.text:
        assert (folder / "star.png").read_bytes().startswith(b"\x89PNG")
    if "star.svg" in block.text:
        assert (folder / "star.svg").read_text().startswith("<svg")


# Tables


def table(section: str, header: str) -> dict[str, str]:
    """The second column of a section's table by each name in its first."""
    (text,) = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    (rows,) = re.findall(rf"^\| {re.escape(header)} \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    found = {}
    for row in rows.splitlines():
        names, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        found |= {one: " ".join(cells) for one in re.findall(r"`([^`]+)`", names) or [names]}
    return found


CHAT = "`POST /v1/chat/completions`"


def test_the_fields_of_a_request() -> None:
    assert table(CHAT, "field").keys() == ChatRequest.model_fields.keys()
    assert table(CHAT, "field of `lira`").keys() == LiraOptions.model_fields.keys()
    assert table("`POST /v1/segment`", "field").keys() == SegmentRequest.model_fields.keys()


@pytest.fixture(scope="module")
def told(served: Any) -> dict[str, dict[str, Any]]:
    """One event of each type, of an answer for which everything was asked."""
    chunks = served.stream("", lira={"task": "gcg", "attributes": ["orange", "red"]}, logprobs=True)
    return {event["type"]: event for event in (chunk["lira"] for chunk in chunks if "lira" in chunk)}


def test_the_fields_of_an_answer(served: Any) -> None:
    found = served.chat("", lira={"task": "gcg", "attributes": ["orange", "red"]})
    message = found["choices"][0]["message"]["lira"]
    described = table(CHAT, "field of the message's `lira`")
    assert described.keys() == message.keys()
    for part in ("masks", "regions", "phrases", "image", "history", "attributes"):
        names = message[part] if isinstance(message[part], dict) else message[part][0]
        missing = [name for name in names if f"`{name}`" not in described[part]]
        assert missing == [] or (part, missing) == ("phrases", ["start", "end"]), part


def test_the_events(told: dict[str, dict[str, Any]]) -> None:
    described = table(CHAT, "event")
    assert list(described) == ["look", "text", "mask", "region", "phrase", "timings", "finish"]
    assert described.keys() == told.keys()
    for kind in ("look", "text", "mask", "region", "phrase"):
        names = told[kind].keys() - {"type", "t"}
        assert [name for name in names if f"`{name}`" not in described[kind]] == [], kind
    assert told["timings"].keys() - {"type", "t"} == told["finish"]["timings"].keys()


def test_the_metrics() -> None:
    text = Metrics().text(0, 0, True).decode()
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    assert table("Metrics", "metric").keys() == {
        one for one, kind in kinds.items() if not (kind == "gauge" and one.endswith("_created"))
    }


def test_the_limits() -> None:
    settings = Settings(Path("bundle"))
    limits = table("How much it takes", "limit")
    assert limits["questions that wait"].startswith(f"{settings.queue} ")
    assert limits["memory for pictures that were looked at"].startswith(f"{settings.scene_cache >> 30} GiB")
    assert f"{settings.most_body >> 20} MiB" in limits["a request's body"]
    times = f"{settings.header_seconds:g} s; {settings.body_seconds:g} s"
    assert limits["time for headers; for a body"].strip() == times
    assert limits["a client that takes nothing"].strip() == f"{settings.send_seconds:g} s"
    assert limits["connections"].strip() == str(settings.most_connections)


def test_the_fields_of_the_log(serve: SimpleNamespace, nano_settings: Settings) -> None:
    (text,) = re.findall(r"^## The log\n(.*?)(?=^## )", PAGE, re.MULTILINE | re.DOTALL)
    with serve.serving(nano_settings) as server:
        server.chat("", lira={"task": "caption"})
    # A line is written when the response has gone: read once the server has ended.
    line = json.loads(server.log.getvalue().splitlines()[0])
    assert [name for name in line if f"`{name}`" not in text] == []
