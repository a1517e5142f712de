"""Start a worker process and send it commands."""

from __future__ import annotations

import json
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from lira_engine.errors import LiraError, how_it_ended

LONG_ENOUGH = 0.05  # seconds between two commands, to measure processor use in between


class WorkerError(LiraError):
    """`worker` reported an error, or ended."""

    def __init__(self, worker: str, text: str) -> None:
        super().__init__(text)
        self.worker = worker


class Worker:
    """`lira_bench.peers.worker` in another process. A context manager that ends it.

    Attributes:
        peak_rss_mib: known once the worker was asked to close.
        idle_cores: largest processor time over elapsed time between two commands: threads that spin while
            others are measured.
    """

    def __init__(self, name: str, python: str, log: Path) -> None:
        """Start the worker with interpreter `python`; its error stream goes to `log`."""
        self.name = name
        self._log = log
        self._errors = log.open("ab")
        try:
            self._process = subprocess.Popen(
                [python, "-m", "lira_bench.peers.worker", name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            self._errors.close()
            raise WorkerError(name, f"{python} cannot be started: {error.strerror}") from None
        self.peak_rss_mib: int | None = None
        self.idle_cores = 0.0
        self._idle_since: tuple[float, float] | None = None  # wall clock, processor time

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Return the answer to a command. Raises WorkerError with its error, or with how it ended."""
        assert self._process.stdin and self._process.stdout
        asked = time.perf_counter()
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            raise WorkerError(
                self.name, f"its process {how_it_ended(code)} while asked to {do}; see {self._log}"
            )
        answer: dict[str, Any] = json.loads(line)
        before, after = answer.pop("cpu")
        if self._idle_since and asked - self._idle_since[0] > LONG_ENOUGH:
            idle = (before - self._idle_since[1]) / (asked - self._idle_since[0])
            self.idle_cores = max(self.idle_cores, idle)
        self._idle_since = (time.perf_counter(), after)
        if "error" in answer:
            raise WorkerError(self.name, answer["error"])
        return answer

    def close(self) -> None:
        """Let it free its model and end, and read its peak memory."""
        self.peak_rss_mib = self.ask("close")["peak_rss_mib"]

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin and self._process.stdout
        if kind is not None and self._process.poll() is None:
            self._process.kill()
        with suppress(BrokenPipeError):  # it ended before it read a command
            self._process.stdin.close()  # which ends it
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()
