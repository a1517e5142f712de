"""Requests that are damaged in every way, to a real server: it refuses them, and answers on as before."""

from __future__ import annotations

import gc
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from damage import TEXT, Damage
from invented import until

from lira_serve.settings import Settings

REQUESTS = int(os.environ.get("LIRA_FUZZ_REQUESTS", "1500"))
SEED = int(os.environ.get("LIRA_FUZZ_SEED", "15"))
GROWTH = 40 << 20  # bytes, after the first third


def wrong(path: str, answer: tuple[int, bytes]) -> str | None:
    """What is wrong with an answer, or None."""
    status, body = answer
    if status >= 500 and status != 503:
        return "an error of the server"
    if not path.startswith("/v1/") or status < 400 or not body:
        return None
    error = json.loads(body)["error"]
    if set(error) != {"message", "type", "param", "code"}:
        return "not OpenAI's error object"
    short = 0 < len(error["message"]) < 600 and "\n" not in error["message"]
    return None if short else "not one line"


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What libraries log of exceptions that nobody caught."""
    found: list[str] = []

    class Complaints(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info or record.name == "asyncio":
                found.append(self.format(record))

    handler = Complaints()
    for name in ("asyncio", "uvicorn.error"):
        logging.getLogger(name).addHandler(handler)
    yield found
    for name in ("asyncio", "uvicorn.error"):
        logging.getLogger(name).removeHandler(handler)


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_damaged_requests_are_refused_and_nothing_else_changes(
    serve: Any, nano_settings: Settings, complaints: list[str]
) -> None:
    damage, counts = Damage(SEED), Counter[int | None]()
    settings = replace(nano_settings, header_seconds=0.3, body_seconds=0.3, scene_cache=4 << 20)
    found: list[tuple[str, bytes, Any]] = []
    memory = open_files = 0
    with serve.serving(settings) as server:
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # it is silent otherwise
        before = server.chat(TEXT, lira={"task": "refseg"})
        for number in range(REQUESTS):
            if number == REQUESTS // 3:
                gc.collect()
                memory, open_files = resident(), descriptors()
            path, data, method = damage.request()
            answer = server.raw(data, method)
            counts[None if answer is None else answer[0]] += 1
            if answer is not None and (fault := wrong(path, answer)):
                found.append((fault, data[:3000], answer))
        gc.collect()
        grown, left_open = resident() - memory, descriptors() - open_files
        after = server.chat(TEXT, lira={"task": "refseg"})
        until(lambda: server.worker.waiting == server.worker.answering == 0)
    print(dict(counts), f"{grown / 2**20:.1f} MB and {left_open} descriptors more after two thirds")
    assert found == []
    lines = [json.loads(line) for line in server.log.getvalue().splitlines()]
    assert [line["trace"] for line in lines if "trace" in line] == []
    assert complaints == []
    assert counts[200] > REQUESTS // 20 and counts[400] > REQUESTS // 3
    assert counts[None] < REQUESTS // 50  # headers that never end
    assert [answer["choices"][0]["message"]["lira"]["masks"] for answer in (before, after)] == [
        before["choices"][0]["message"]["lira"]["masks"]
    ] * 2
    assert grown < GROWTH and left_open <= 4
