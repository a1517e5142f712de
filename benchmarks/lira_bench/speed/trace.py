"""Write one answer as a Chrome trace, for chrome://tracing and Perfetto."""

from __future__ import annotations

from typing import Any

from lira_bench.speed.measure import Run
from lira_bench.speed.record import STAGES
from lira_bench.speed.report import TITLES
from lira_engine.system.text import json_text

_MARKS = "tokens, masks, regions"


def chrome_trace(run: Run, title: str) -> str:
    """Return JSON in the trace event format, in microseconds: a row per stage, one row for the marks."""
    events: list[dict[str, Any]] = [_named("process_name", 0, title)]
    lanes = [stage for stage in STAGES if run.seconds(stage)]
    for lane, stage in enumerate(lanes, 1):
        events += [_named("thread_name", lane, TITLES[stage]), _order(lane)]
    marks = len(lanes) + 1
    events += [_named("thread_name", marks, _MARKS), _order(marks)]
    for span in run.spans:
        sizes = {"rows": span.rows, "context": span.context} if span.rows else {}
        events.append(
            {
                "name": TITLES[span.stage],
                "ph": "X",
                "ts": _micro(span.start),
                "dur": _micro(span.lasted),
                "pid": 1,
                "tid": lanes.index(span.stage) + 1,
                "args": sizes,
            }
        )
    for mark in run.marks:
        events.append(
            {
                "name": f"{mark.kind}: {mark.text}",
                "ph": "i",
                "ts": _micro(mark.at),
                "pid": 1,
                "tid": marks,
                "s": "t" if mark.kind == "token" else "p",
            }
        )
    return json_text({"traceEvents": events, "displayTimeUnit": "ms"}, indent=None)


def _named(kind: str, lane: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": 1, "tid": lane, "args": {"name": name}}


def _order(lane: int) -> dict[str, Any]:
    return {"name": "thread_sort_index", "ph": "M", "pid": 1, "tid": lane, "args": {"sort_index": lane}}


def _micro(seconds: float) -> float:
    return round(1e6 * seconds, 1)
