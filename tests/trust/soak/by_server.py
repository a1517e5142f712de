"""The soak through the server: `lira-edge serve` as a process, and clients that come and go."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from lira_bench.serving.client import ask
from lira_bench.serving.load import becomes_idle
from lira_bench.serving.questions import Ask, Conversation, Picture
from lira_bench.serving.server import Sample, Server, serving
from lira_bench.serving.traffic import open_client
from soak.by_api import SAMPLE
from soak.measured import WINDOWS, Limits, record
from soak.visits import Visit, visits

CLIENTS = 3
PATIENCE = 30.0  # seconds for a sample
CHAT = "/v1/chat/completions"


def soak(
    bundle: Path, questions: int, limits: Limits, seed: int, leaks: Collection[str] = ()
) -> dict[str, Any]:
    """Ask so many questions, and return the record."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "sample.json")
        program = (sys.executable, "-m", "soak.server_process", ",".join(leaks), str(told), "serve")
        arguments = [str(bundle), "--scene-cache", "16MiB", "--queue", "32"]
        with serving(arguments, Path(folder, "log"), program) as server:
            found = _soak(server, told, questions, limits, seed)
        traces = sum("trace" in json.loads(line) for line in Path(folder, "log").read_text().splitlines())
    if traces:
        found["failed"].append(f"{traces} tracebacks in the server's log")
    return found


def _soak(server: Server, told: Path, questions: int, limits: Limits, seed: int) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    samples, probes = [], [asyncio.run(_probe(server.url))]
    stream = visits(seed)
    for window in range(1, WINDOWS + 1):
        asyncio.run(_clients(server.url, stream, counts, questions * window // WINDOWS))
        assert becomes_idle(server.url), "questions are still being answered"
        samples.append(_sample(server, told))
        if window in (WINDOWS // 2, WINDOWS):
            probes.append(asyncio.run(_probe(server.url)))
    # A connection that has just ended may not be closed yet, and threads that read pictures come and go.
    limits = replace(limits, files=CLIENTS, threads=CLIENTS)
    return record(samples, probes, dict(counts), limits)


def _sample(server: Server, told: Path) -> Sample:
    told.unlink(missing_ok=True)
    server.process.send_signal(signal.SIGUSR1)
    until = time.monotonic() + PATIENCE
    while not told.exists():
        assert time.monotonic() < until, "the server does not say what it takes"
        time.sleep(0.01)
    return Sample(**json.loads(told.read_text()))


async def _probe(url: str) -> str:
    picture = Picture("sample", SAMPLE.read_bytes(), "image/png", None)
    conversation = Conversation("gcg", 0, picture, (Ask("", "gcg"),))
    async with open_client(url) as client:
        reply = await ask(client, conversation, 0, [], stream=True)
    assert reply.complete and reply.masks, reply
    return hashlib.sha256(repr((reply.text, reply.tokens, reply.masks)).encode()).hexdigest()


async def _clients(url: str, stream: Iterator[Visit], counts: Counter[str], until: int) -> None:
    async def live(client: httpx.AsyncClient) -> None:
        while counts.total() < until:
            await _visit(client, next(stream), counts)

    async with open_client(url, CLIENTS) as client:
        await asyncio.gather(*(live(client) for _ in range(CLIENTS)))


async def _visit(client: httpx.AsyncClient, visit: Visit, counts: Counter[str]) -> None:
    if visit.wrong:
        counts[await _wrong(client, visit)] += 1
        return
    asked, answers = list[Ask](), list[str]()
    for one, leave in zip(visit.conversation.asks, visit.leaves, strict=True):
        conversation = replace(visit.conversation, asks=(*asked, one))
        streamed = leave is not None or len(asked) % 2 == 0
        reply = await ask(client, conversation, len(asked), answers, streamed, leave)
        if reply.complete:
            asked.append(one)
            answers.append(reply.text)
            counts["answered"] += 1
        elif reply.left:
            counts["left"] += 1
        else:
            assert "the prompt has" in reply.error, (conversation.name(len(asked)), reply)
            counts["full conversation"] += 1
            return


async def _wrong(client: httpx.AsyncClient, visit: Visit) -> str:
    picture = visit.conversation.picture
    good = visit.conversation.body(0, [], stream=False)
    if visit.wrong == "a full context":
        await _fill(client, visit.conversation)
        return visit.wrong
    bodies: dict[str, dict[str, Any]] = {
        "a picture that is text": _about(visit.conversation, b"no picture"),
        "a picture that is cut": _about(visit.conversation, picture.data[: len(picture.data) // 2]),
        "an empty picture": _about(visit.conversation, b""),
        "an unknown task": good | {"lira": {"task": "nothing"}},
        "a temperature below 0": good | {"temperature": -1.0},
        "too many tiles": good | {"lira": {"max_tiles": 99}},
        "no question": good | {"messages": []},
        "a question that is too long": _long(visit.conversation, 2000),
    }
    response = await client.post(CHAT, json=bodies[visit.wrong])
    assert 400 <= response.status_code < 500, (visit.wrong, response.text)
    return visit.wrong


async def _fill(client: httpx.AsyncClient, conversation: Conversation) -> None:
    """Ask a question that leaves room for one or two tokens of the answer."""
    words = 2000
    refused = await client.post(CHAT, json=_long(conversation, words))
    found, most = map(int, re.findall(r"(?:has|at most) (\d+)", refused.json()["error"]["message"]))
    words -= -(-(found - most + 1) // (found // words))
    answered = await client.post(CHAT, json=_long(conversation, words))
    assert answered.status_code == 200, answered.text
    assert answered.json()["choices"][0]["finish_reason"] == "length"


def _about(conversation: Conversation, data: bytes) -> dict[str, Any]:
    return replace(conversation, picture=replace(conversation.picture, data=data)).body(0, [], stream=False)


def _long(conversation: Conversation, words: int) -> dict[str, Any]:
    return replace(conversation, asks=(Ask("star " * words),)).body(0, [], stream=False)
