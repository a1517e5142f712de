"""`lira-edge serve` as a process of its own, and what the system tells about it (Linux)."""

from __future__ import annotations

import os
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from lira_engine.errors import LiraError

SERVE = (sys.executable, "-c", "from lira_engine.main import main; main()", "serve")
_OPEN_SECONDS = 120.0
_END_SECONDS = 30.0


@dataclass(frozen=True)
class Server:
    """A server that answers at `url`."""

    url: str
    process: subprocess.Popen[str]


@contextmanager
def serving(arguments: Sequence[str], log: Path, program: Sequence[str] = SERVE) -> Iterator[Server]:
    """Start a server at a free port, and end it with SIGTERM. Its log goes to the file `log`.

    Raises LiraError if it does not start, or does not end with 0.
    """
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*program, *arguments, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        assert process.stdout
        patience = threading.Timer(_OPEN_SECONDS, process.kill)
        patience.start()
        try:
            line = process.stdout.readline()
            patience.cancel()
            address = re.search(r"http://\S+", line)
            if address is None:
                told = log.read_text(errors="replace").strip().splitlines()
                raise LiraError(f"the server did not start: {told[-1] if told else 'it said nothing'}")
            yield Server(address[0], process)
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
            if process.poll() != 0:
                raise LiraError(
                    f"the server ended with {process.poll()} after SIGTERM, expected 0: see {log}"
                )
        finally:
            patience.cancel()
            process.kill()
            process.wait()
            process.stdout.close()


@dataclass(frozen=True)
class Sample:
    """What a process takes, at a moment. rss: MiB. cpu: seconds so far."""

    at: float
    rss: float
    files: int
    threads: int
    cpu: float


@dataclass
class Watch:
    """Samples of a process, one a second."""

    samples: list[Sample] = field(default_factory=list)

    def growth(self, of: Callable[[Sample], float]) -> float:
        """Return how much larger the last fifth is than the middle one (medians)."""
        fifth = max(1, len(self.samples) // 5)
        middle = len(self.samples) // 2
        last = statistics.median(map(of, self.samples[-fifth:]))
        return last - statistics.median(map(of, self.samples[middle - fifth // 2 :][:fifth]))

    @property
    def cores(self) -> float:
        """Return how many cores it kept busy."""
        first, last = self.samples[0], self.samples[-1]
        return (last.cpu - first.cpu) / max(last.at - first.at, 1e-9)


@contextmanager
def watched(pid: int, every: float = 1.0) -> Iterator[Watch]:
    """Sample a process while the block runs."""
    watch, over = Watch([sample(pid)]), threading.Event()

    def look() -> None:
        while not over.wait(every):
            with suppress(OSError):
                watch.samples.append(sample(pid))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield watch
        watch.samples.append(sample(pid))
    finally:
        over.set()
        thread.join()


def sample(pid: int) -> Sample:
    """Return what a process takes now. Raises OSError where /proc does not tell."""
    folder = Path("/proc", str(pid))
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
    fields = (folder / "stat").read_text().rpartition(") ")[2].split()  # from field 3 on, proc_pid_stat(5)
    return Sample(
        time.monotonic(),
        int(status["VmRSS"].split()[0]) / 1024,
        len(os.listdir(folder / "fd")),
        int(status["Threads"]),
        (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
    )
