"""A server under load: what its clients got, and what it took."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from lira_bench.serving.client import Reply
from lira_bench.serving.questions import Conversation
from lira_bench.serving.request import Request
from lira_bench.serving.server import SERVE, Watch, serving, watched
from lira_bench.serving.traffic import Outcome, Question, alone, difference, together
from lira_engine.system import load

MOST_GROWTH = 20.0  # MiB from the middle of the run
_SHARES = (50, 95, 99)
_SHOWN = 10  # errors and differences of each kind
_IDLE_SECONDS = 5.0


def under_load(
    request: Request,
    asked: Sequence[Conversation],
    log: Path,
    program: Sequence[str] = SERVE,
    show: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Ask all questions alone, then let the clients ask. Return the record, with `checks` that may have
    failed.

    Raises LiraError if the server does not start, does not end, or cannot answer a question that is asked
    alone.
    """
    arguments = [*request.server_arguments(), "--queue", str(request.queue)]
    arguments += ["--scene-cache", f"{request.scene_cache}MiB"]
    with serving(arguments, log, program) as server:
        show("every question alone")
        expected = asyncio.run(alone(server.url, asked))
        show(f"{request.clients} clients for {request.seconds:g} s")
        asked_before, before = len(log.read_text().splitlines()), load.reading()
        own, started = time.process_time(), time.perf_counter()
        with watched(server.process.pid) as watch:
            outcomes = asyncio.run(
                together(server.url, asked, request.clients, request.seconds, request.leave, request.seed)
            )
        seconds, own = time.perf_counter() - started, time.process_time() - own
        beside = load.between(before, load.reading())
        idle = becomes_idle(server.url)
    logged = [json.loads(line) for line in log.read_text().splitlines()[asked_before:]]
    record = _record(outcomes, expected, watch, seconds, logged)
    record["client_cores"] = own / seconds
    record["load_beside"] = None if beside is None else beside.text()
    record["checks"] = _checks(record, request.clients, idle)
    return record


def becomes_idle(url: str) -> bool:
    """Return whether nothing waits and nothing is answered any more, soon after all clients have ended."""
    until = time.perf_counter() + _IDLE_SECONDS
    while time.perf_counter() < until:
        lines = httpx.get(f"{url}/metrics", trust_env=False).text.splitlines()
        found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        if float(found["lira_queue_waiting"]) == float(found["lira_answering"]) == 0:
            return True
        time.sleep(0.1)
    return False


def _record(
    outcomes: Sequence[Outcome],
    expected: dict[Question, Reply],
    watch: Watch,
    seconds: float,
    logged: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    answered = [one for one in outcomes if one.reply.complete]
    differences = Counter(
        f"{one.conversation.name(one.turn)}: {part}"
        for one in answered
        if (part := difference(one.reply, expected[one.question]))
    )
    kinds = dict.fromkeys(one.conversation.kind for one in answered)
    statuses = Counter(one.reply.status for one in outcomes)
    return {
        "seconds": seconds,
        "requests": len(outcomes),
        "answers": len(answered),
        "answers_per_s": len(answered) / seconds,
        "tokens_per_s": sum(one.reply.new_tokens for one in answered) / seconds,
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "share_503": statuses[503] / max(len(outcomes), 1),
        "left": sum(one.reply.left for one in outcomes),
        "errors": dict(Counter(one.reply.error for one in outcomes if one.reply.error).most_common(_SHOWN)),
        "differences": dict(differences.most_common(_SHOWN)),
        "different_answers": differences.total(),
        "latency_ms": {
            kind: _shares([one.reply.seconds for one in answered if one.conversation.kind == kind])
            for kind in kinds
        }
        | {"all": _shares([one.reply.seconds for one in answered])},
        "ttft_ms": _shares([one.reply.first for one in answered if one.reply.first is not None]),
        "queue_ms": _shares([line["queue"] for line in logged if "queue" in line]),
        "looks": Counter(line["scene"] for line in logged if "scene" in line),
        "tracebacks": sum("trace" in line for line in logged),
        "rss_mib": [round(one.rss, 1) for one in watch.samples],
        "growth_mib": watch.growth(lambda one: one.rss),
        "growth_files": watch.growth(lambda one: one.files),
        "growth_threads": watch.growth(lambda one: one.threads),
        "server_cores": watch.cores,
    }


def _shares(seconds: Sequence[float]) -> dict[str, float]:
    """Return the count and the percentiles in milliseconds."""
    found: dict[str, float] = {"count": len(seconds)}
    if seconds:
        values = np.percentile(np.array(seconds) * 1000, _SHARES)
        found |= {f"p{share}": float(value) for share, value in zip(_SHARES, values, strict=True)}
    return found


def _checks(record: dict[str, Any], clients: int, idle: bool) -> dict[str, bool]:
    return {
        "no error but 503s": not record["errors"] and not record["tracebacks"] and record["answers"] > 0,
        "answers equal those of the same questions asked alone": not record["different_answers"],
        f"memory grew by less than {MOST_GROWTH:g} MiB from the middle": record["growth_mib"] < MOST_GROWTH,
        "no more open files than clients come and go": record["growth_files"] <= clients,
        "no more threads": record["growth_threads"] <= 2,
        "idle at the end": idle,
    }
