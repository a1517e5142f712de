"""What a request costs beyond the answer: one client, beside a plain loop in Python, in turns."""

from __future__ import annotations

import http.client
import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count, cycle, islice
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from lira_bench.serving.plain_loop import PlainLoop
from lira_bench.serving.questions import Conversation, Picture
from lira_engine.errors import LiraError
from lira_engine.system.turns import in_turns, so_many

KINDS = ("vqa", "refseg", "gcg")
_REST = 0.01  # seconds: threads of the engines that answered last have stopped spinning
_MARK = 24  # pixels
SCENE_CACHE = 256 << 20
"""Bytes that the server and the loop keep: more than the scenes take that are asked about again."""


def overhead(
    url: str, loop: PlainLoop, asked: Sequence[Conversation], rounds: int, show: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return a row for each of `KINDS`, about pictures that are kept and about new ones. Milliseconds.

    The loop has the scene of a kept picture; the client sends the picture with every question. Raises
    LiraError if an answer of the server is not the loop's.
    """
    client = _Client(url)
    rows = []
    marks = count()
    for kind in KINDS:
        of_kind = [conversation for conversation in asked if conversation.kind == kind]
        for new in (False, True):
            show(f"{kind} about {'new' if new else 'kept'} pictures, beside a plain loop")
            rows.append(
                {"kind": kind, "new": new} | _row(client, loop, of_kind, marks if new else None, rounds)
            )
    client.close()
    return rows


def _row(
    client: _Client,
    loop: PlainLoop,
    asked: Sequence[Conversation],
    marks: Iterator[int] | None,
    rounds: int,
) -> dict[str, Any]:
    lead = len(asked)  # untimed: so that scenes are kept, and engines warm
    said: list[list[str]] = [[], [], []]

    several = list(islice(cycle(asked), lead + rounds))
    first = second = several
    if marks is not None:  # the server gets no picture twice, and the loop has scenes of its own
        first, second = ([_marked(one, next(marks)) for one in several] for _ in range(2))
    questions = iter(first)
    whole_bodies = iter([json.dumps(one.body(0, [], False)).encode() for one in first])
    stream_bodies = iter([json.dumps(one.body(0, [], True)).encode() for one in second])

    def ask_loop() -> None:
        conversation = next(questions)
        said[0].append(loop.answer(conversation.picture, conversation.asks[0])[0].text)

    def ask_whole() -> None:
        said[1].append(client.whole(next(whole_bodies)))

    def ask_stream() -> None:
        said[2].append(client.stream(next(stream_bodies)))

    works = (ask_loop, ask_whole, ask_stream)
    for _ in range(lead):
        for work in works:
            work()
    turns = in_turns(works, so_many(rounds), lambda: time.sleep(_REST), time.perf_counter)
    if said[1] != said[0] or (marks is None and said[2] != said[0]):
        raise LiraError("the server's answers are not those of the plain loop, expected the same text")
    loop_ms, whole, stream = (np.array(times) * 1000 for times in turns.seconds)
    return {
        "loop_ms": _median(loop_ms),
        "whole": _beside(whole, loop_ms),
        "stream": _beside(stream, loop_ms),
    }


def _beside(times: np.ndarray, loop: np.ndarray) -> dict[str, float]:
    more = times - loop
    return {
        "ms": _median(times),
        "more_ms": _median(more),
        "more_p95_ms": float(np.percentile(more, 95)),
        "ratio": _median(times / loop),
    }


def _median(values: np.ndarray) -> float:
    return float(np.median(values))


def _marked(conversation: Conversation, number: int) -> Conversation:
    """Return a conversation about a picture that nobody has seen: with a mark in a corner."""
    picture = conversation.picture
    form = picture.media_type.removeprefix("image/").upper()
    with Image.open(io.BytesIO(picture.data)) as opened:
        image = opened.convert("RGB")
    colour = tuple(16 * (number >> shift & 15) for shift in (0, 4, 8))  # steps that JPEG does not blur
    image.paste(colour, (0, 0, _MARK, _MARK))
    file = io.BytesIO()
    image.save(file, format=form)
    name = f"{picture.name} {number}"
    return replace(
        conversation, picture=Picture(name, file.getvalue(), picture.media_type, picture.max_tiles)
    )


class _Client:
    """Keeps one connection, and does little besides: the standard library's client."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc)

    def whole(self, body: bytes) -> str:
        """Return the text of an answer."""
        text: str = json.loads(self._post(body).read())["choices"][0]["message"]["content"]
        return text

    def stream(self, body: bytes) -> str:
        """Return the text of a streamed answer, read line by line."""
        text = ""
        for line in self._post(body):
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["delta"].get("content") or ""
        return text

    def _post(self, body: bytes) -> http.client.HTTPResponse:
        self._connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        response = self._connection.getresponse()
        if response.status != 200:
            raise LiraError(f"the server answered {response.status} to a single client, expected 200")
        return response

    def close(self) -> None:
        self._connection.close()
