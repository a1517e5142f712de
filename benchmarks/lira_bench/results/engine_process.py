"""Measure one engine in a process of its own: its peak memory is its own, and a crash costs one row.

    python -m lira_bench.results.engine_process

Reads the fields of a `Request` as a line of JSON from standard input. Prints lines of JSON: {"doing": ...} at
each step, at last {"error": one line or null}. What libraries print goes to the standard error.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lira_bench.speed import output
from lira_bench.speed.benchmark import bench
from lira_bench.speed.request import Request
from lira_engine.errors import LiraError, how_it_ended, out_of_memory
from lira_engine.system.atomic import remove_leftovers
from lira_engine.system.parent import end_with_parent

_PATHS = ("bundle", "output", "images", "checkpoint", "submit")


def measure_apart(request: Request, log: Path, progress: Callable[[str], None]) -> str | None:
    """Run `bench` for `request`, whose folder holds no record, in a new process.

    Its standard error goes to `log`. Returns None, or what went wrong, on one line. An interruption ends the
    process, too.
    """
    assert request.output is not None
    with log.open("wb") as errors, _interrupts_later():
        process = subprocess.Popen(
            [sys.executable, "-m", "lira_bench.results.engine_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    assert process.stdin and process.stdout
    answer: dict[str, Any] = {}
    try:
        process.stdin.write(_line(request))
        process.stdin.flush()
        for line in process.stdout:
            answer = json.loads(line)
            if "doing" in answer:
                progress(answer["doing"])
        process.wait()
    except BrokenPipeError:  # it ended before it read the request
        process.wait()
    except ValueError:
        return f"its process printed {line.decode(errors='replace').strip()[:80]!r}"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        _close(process.stdin)
        remove_leftovers(request.output)
    if process.returncode != 0 or "error" not in answer:
        return f"its process {how_it_ended(process.returncode)}: see {log}"
    if answer["error"] is None and not (request.output / output.RECORD).exists():
        return f"it wrote no {output.RECORD}"
    reason: str | None = answer["error"]
    return reason


def _close(pipe: Any) -> None:
    with suppress(BrokenPipeError):
        pipe.close()


@contextmanager
def _interrupts_later() -> Iterator[None]:
    """Hold Ctrl-C back during the block. A process that starts there never gets it: who started it ends
    it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _line(request: Request) -> bytes:
    fields = {
        name: str(value) if isinstance(value, Path) else value for name, value in asdict(request).items()
    }
    return json.dumps(fields).encode() + b"\n"


def _request(line: bytes) -> Request:
    fields = json.loads(line)
    fields |= {name: Path(fields[name]) for name in _PATHS if fields[name] is not None}
    return Request(**{**fields, "peer": tuple(fields["peer"])})


def _reason(error: Exception) -> str:
    """Return the error on one line, with its type if it is not a LiraError."""
    text = out_of_memory(error) or str(error)
    told = text if isinstance(error, LiraError) or out_of_memory(error) else f"{type(error).__name__}: {text}"
    return " ".join(told.split())


def main() -> None:
    # Libraries print on standard output: our lines get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    error: str | None = None
    request = _request(sys.stdin.buffer.readline())
    end_with_parent()
    try:
        bench(request, lambda doing: say(doing=doing))
    except BrokenPipeError:
        raise
    except Exception as found:  # any error is this engine's result
        if not isinstance(found, LiraError):
            import traceback

            traceback.print_exc()
        error = _reason(found)
    say(error=error)
    answers.close()


if __name__ == "__main__":
    main()
