"""Run commands in children that are forked when all is imported, and end them at given moments.

A line of JSON on the standard input asks: `argv` of `lira-edge`, its folder `cwd`, its `log`; `plant`: null,
or a function of quick.py to call before; `at`: null, ["write", N] or ["cpu", SECONDS]. The answer: how it
ended (`code`, negative: the signal), and of a run that was not ended also its `writes` and `cpu`.

The N-th write is the N-th call that changes a folder, opens a file to write it or flushes one to the disk:
the child is killed just before. A timer of the processor's time (SIGPROF, whose default is to end the process
at once as SIGKILL does) ends it anywhere, also in the middle of what C++ writes.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

IMPORTED = (
    "huggingface_hub",
    "lira_bench.accuracy.cli",
    "lira_bench.accuracy.evaluation",
    "lira_bench.cli",
    "lira_bench.speed.benchmark",
    "lira_calib.calibrate",
    "lira_calib.cli",
    "lira_engine.build",
    "lira_engine.cli",
    "lira_engine.commands",
    "lira_engine.ort.build_cpu",
    "lira_engine.ort.llm",
    "lira_engine.ort.stage",
    "lira_export.cli",
    "lira_export.export",
    "lira_runtime.run",
    "matplotlib.pyplot",
    "tokenizers",
)
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate", "os.link", "os.symlink")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Writes:
    """Counts the writes of this process; kills it before the `last`-th."""

    def __init__(self, last: int | None) -> None:
        self.seen, self.last = 0, last
        self._kill, self._here, self._flush = os.kill, os.getpid(), os.fsync
        os.fsync = self._fsync
        sys.addaudithook(self._hook)

    def _fsync(self, descriptor: int) -> None:
        self._note()
        self._flush(descriptor)

    def _hook(self, event: str, given: tuple[Any, ...]) -> None:
        if event in CHANGES:
            self._note()
        elif event == "open" and str(given[0]) != os.devnull:
            mode, flags = given[1:3]
            if set(mode or "") & set("wax+") or (isinstance(flags, int) and flags & WRITING):
                self._note()

    def _note(self) -> None:
        self.seen += 1
        if self.seen == self.last:
            self._kill(self._here, signal.SIGKILL)


def run(asked: dict[str, Any], counted: int) -> None:
    """Be the child: run the command and end."""
    log = os.open(asked["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.chdir(asked["cwd"])
    kind, last = asked["at"] or (None, None)
    from lira_engine.main import main

    if asked["plant"] is not None:
        getattr(importlib.import_module("quick"), asked["plant"])()
    writes = Writes(last if kind == "write" else None)
    before = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    if kind == "cpu":
        signal.setitimer(signal.ITIMER_PROF, last)
    code: Any = 1
    try:
        if asked["argv"][0] == "download":  # a part of `export`
            code = importlib.import_module("quick").download(asked["argv"][1])
        else:
            main(asked["argv"])
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
    spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - before
    os.write(counted, json.dumps({"writes": writes.seen, "cpu": spent}).encode())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def fork(asked: dict[str, Any]) -> dict[str, Any]:
    told, counted = os.pipe()
    child = os.fork()
    if child == 0:
        run(asked, counted)
    os.close(counted)
    _, status = os.waitpid(child, 0)
    with os.fdopen(told, "rb") as pipe:
        found = json.loads(pipe.read() or "{}")
    return {"code": os.waitstatus_to_exitcode(status), **found}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what is printed meanwhile is no answer
    sys.path.insert(0, str(Path(__file__).parent))
    for name in (*IMPORTED, "quick"):
        importlib.import_module(name)
    gc.freeze()
    answers.write("{}\n")
    for line in sys.stdin:
        answers.write(json.dumps(fork(json.loads(line))) + "\n")


if __name__ == "__main__":
    main()
