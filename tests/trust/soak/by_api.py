"""The soak through the API: one process, one `Lira`."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lira_bench.serving.plain_loop import PlainLoop, question
from lira_bench.serving.questions import Ask, Picture
from lira_engine.errors import LiraError
from lira_runtime import Lira
from lira_runtime.answer import Answer, last_answer
from lira_runtime.sampling import make_sampler
from lira_runtime.turns import Turn
from soak.measured import WINDOWS, Limits, record, settled
from soak.visits import Visit, visits

SAMPLE = Path(__file__).parents[3] / "assets" / "sample.png"
KEPT = 16 << 20
"""Bytes of scenes that are kept: full before the middle of a run."""


def soak(bundle: Path, questions: int, limits: Limits, seed: int, seconds: float = 0) -> dict[str, Any]:
    """Ask so many questions, and further ones until so many seconds are over. Return the record."""
    counts: Counter[str] = Counter()
    started = time.monotonic()
    with Lira.open(bundle) as lira:
        loop = PlainLoop(lira, KEPT)
        samples, probes = [], [_probe(lira)]
        stream = visits(seed)
        for window in range(1, WINDOWS + 1):
            while counts.total() < questions * window // WINDOWS:
                counts.update(_visit(lira, loop, next(stream)))
            samples.append(settled())
            if window in (WINDOWS // 2, WINDOWS):
                probes.append(_probe(lira))
        while time.monotonic() - started < seconds:
            counts.update(_visit(lira, loop, next(stream)))
        loop.close()
    return record(samples, probes, dict(counts), limits) | {"seconds": time.monotonic() - started}


def openings(bundle: Path, count: int, limits: Limits) -> dict[str, Any]:
    """Open the bundle, ask, and close it, so many times. Return the record."""
    samples, probes = [], []
    for number in range(1, count + 1):
        with Lira.open(bundle) as lira:
            probes.append(_probe(lira))
        if number * WINDOWS % count < WINDOWS:
            samples.append(settled())
    return record(samples, probes, {"openings": count}, limits)


def _probe(lira: Lira) -> str:
    """Return the digest of an answer with text, tokens, regions and masks."""
    answer = lira.look(SAMPLE).ask(task="gcg")
    digest = hashlib.sha256(repr((answer.text, answer.token_ids)).encode())
    for mask in answer.masks:
        digest.update(mask.logits.tobytes())
    assert answer.masks
    return digest.hexdigest()


def _visit(lira: Lira, loop: PlainLoop, visit: Visit) -> Iterator[str]:
    """Ask, and yield what came of each question."""
    picture = visit.conversation.picture
    if visit.wrong:
        yield _wrong(lira, loop, visit)
        return
    history: list[Turn] = []
    for ask, leave in zip(visit.conversation.asks, visit.leaves, strict=True):
        try:
            if leave is None:
                history.append(loop.answer(picture, ask, history)[0].turn)
                yield "answered"
            else:
                stream = loop.scene(picture).stream(question(ask, history))
                for _ in islice(stream, leave):
                    pass
                yield "left"
        except LiraError as error:
            if "the prompt has" not in str(error):
                raise
            yield "full conversation"
            return


def _wrong(lira: Lira, loop: PlainLoop, visit: Visit) -> str:
    picture = visit.conversation.picture
    if visit.wrong == "a full context":
        assert _endless(lira, loop, picture).finish_reason == "length"
        return visit.wrong
    tries: dict[str, Callable[[], object]] = {
        "a picture that is text": lambda: lira.look(b"no picture"),
        "a picture that is cut": lambda: lira.look(picture.data[: len(picture.data) // 2]),
        "an empty picture": lambda: lira.look(np.zeros((0, 4, 3), np.uint8)),
        "an unknown task": lambda: loop.scene(picture).ask(task="nothing"),
        "a temperature below 0": lambda: loop.scene(picture).ask("What?", temperature=-1.0),
        "too many tiles": lambda: lira.look(picture.data, max_tiles=99),
        "no question": lambda: loop.scene(picture).ask(""),
        "a question that is too long": lambda: loop.scene(picture).ask("star " * 2000),
    }
    try:
        tries[visit.wrong]()
    except LiraError:
        return visit.wrong
    raise AssertionError(f"{visit.wrong} was not refused")


def _endless(lira: Lira, loop: PlainLoop, picture: Picture) -> Answer:
    """Return an answer that ends when the KV cache is full."""
    prompt = lira.prompt(question(Ask("What is in this image?")))
    endless = replace(prompt, stop_ids=frozenset(), max_new_tokens=1 << 20)
    return last_answer(loop.scene(picture).stream_prompt(endless, make_sampler(), use_ilvc=False))
