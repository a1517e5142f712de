"""Run what was asked for and write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from lira_bench.reproduce import function_line
from lira_bench.serving.load import under_load
from lira_bench.serving.overhead import SCENE_CACHE, overhead
from lira_bench.serving.plain_loop import PlainLoop
from lira_bench.serving.questions import Conversation, conversations
from lira_bench.serving.report import markdown
from lira_bench.serving.request import Request
from lira_bench.serving.server import SERVE, serving
from lira_engine.errors import LiraError
from lira_engine.system import load
from lira_engine.system.atomic import atomic_write
from lira_engine.system.machine import this_machine
from lira_engine.system.text import json_text
from lira_runtime.lira import Lira

RECORD, PAGE = "serving.json", "serving.md"
_PLAIN_SHARE = 0.1  # of the load's seconds


def benchmark(
    request: Request,
    program: Sequence[str] = SERVE,
    show: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure, write the record, its page and the servers' logs into `request.output`, return the record.

    Raises LiraError for a folder that holds a record, and as `under_load` and `overhead` do.
    """
    folder = request.output
    if (folder / RECORD).exists() and not request.overwrite:
        raise LiraError(f"{folder} holds a record already: choose another -o, or add --overwrite")
    asked = conversations(request.scenes)
    folder.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {name: _plain(value) for name, value in asdict(request).items()}
    record |= {"machine": asdict(this_machine()), "reproduce": reproduce(request)}
    if request.seconds:
        found = under_load(request, asked, folder / "load.log", program, show)
        show("the same questions in a plain loop")
        with _opened(request) as lira:
            loop = PlainLoop(lira, request.scene_cache << 20)
            answers, tokens, taken = loop.run(asked, request.seconds * _PLAIN_SHARE, request.seed)
            loop.close()
        found["plain_loop"] = {"answers_per_s": answers / taken, "tokens_per_s": tokens / taken}
        record["load"] = found
    if request.rounds:
        record["overhead"] = _overhead(request, asked, program, show)
    text = markdown(record)
    for name, content in ((PAGE, text), (RECORD, json_text(record))):
        with atomic_write(folder / name) as file:
            file.write(content.encode())
    return record


def _overhead(
    request: Request, asked: Sequence[Conversation], program: Sequence[str], show: Callable[[str], None]
) -> dict[str, Any]:
    arguments = [*request.server_arguments(), "--scene-cache", str(SCENE_CACHE)]
    with serving(arguments, request.output / "overhead.log", program) as server, _opened(request) as lira:
        loop = PlainLoop(lira, SCENE_CACHE)
        before = load.reading()
        rows = overhead(server.url, loop, asked, request.rounds, show)
        beside = load.between(before, load.reading())
        loop.close()
    told = None if beside is None else beside.text()
    return {"rows": rows, "rounds": request.rounds, "load_beside": told}


def reproduce(request: Request) -> str:
    """Return the line that repeats the run."""
    options = dict(vars(request))
    return function_line(
        "python -m lira_bench.serving", Request, options.pop("bundle"), options.pop("scenes"), **options
    )


def _opened(request: Request) -> Lira:
    return Lira.open(request.bundle, request.target, request.precision, request.threads)


def _plain(value: object) -> object:
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)
