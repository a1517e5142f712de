"""What an input may cost, and how it may end: the judge of all harnesses. Linux only."""

from __future__ import annotations

import faulthandler
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from fuzz.kind import Kind

from lira_engine.errors import LiraError, OutOfMemory

SECONDS = 20.0
MEGABYTES = 1000.0
"""At most, beyond the start, for an input of 1 MB; inputs are smaller."""
_LONGEST = 12_000  # characters of a message, which may quote a name; where it is printed it becomes one line
_ADDRESSES = 2  # times the memory: threads reserve addresses that they never use


class Finding(Exception):
    """An input ended in a way that it may not. The cause, if there is one, is what the reader raised."""


class _Late(BaseException):
    """Raised by the alarm. No reader catches it."""


@dataclass(frozen=True)
class Cost:
    """Of one input. refused: with a LiraError."""

    seconds: float
    megabytes: float
    refused: bool


def checked(kind: Kind, data: bytes, seconds: float = SECONDS, megabytes: float = MEGABYTES) -> Cost:
    """Give an input to its reader. Raises Finding for an error that is no LiraError, for a message that
    quotes the file, and for an input that takes too long or asks for too much memory."""
    before = _resident()
    started = time.perf_counter()
    refused = False
    try:
        with _alarm(seconds), _ceiling(megabytes * _ADDRESSES):
            try:
                kind.read(data)
            except LiraError as error:
                refused = True
                _check_message(error)
    except _Late:
        raise Finding(f"takes more than {seconds:g} s") from None
    except Finding:
        raise
    except MemoryError as error:
        raise Finding(f"asks for more than {megabytes * _ADDRESSES:,.0f} MB") from error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # also a panic of code in Rust, which is no Exception
        raise Finding(f"{type(error).__name__}: {str(error)[:200]}") from error
    spent = time.perf_counter() - started
    grown = _peak() - before
    if spent > seconds:  # in a call into C, which the alarm does not end
        raise Finding(f"takes more than {seconds:g} s")
    if grown > megabytes:
        raise Finding(f"takes {grown:,.0f} MB, expected at most {megabytes:,.0f}")
    return Cost(spent, max(grown, 0.0), refused)


def _check_message(error: LiraError) -> None:
    if isinstance(error, OutOfMemory):
        raise MemoryError from error
    if len(str(error)) > _LONGEST:
        raise Finding(f"a message of {len(str(error)):,} characters: {str(error)[:100]}") from error


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Ends a block of Python after `seconds`; a process that hangs in C ends a minute later."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, ring)
    faulthandler.dump_traceback_later(seconds + 60, exit=True)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _ceiling(megabytes: float) -> Iterator[None]:
    """Refuses what goes beyond what is there by more than `megabytes`, so that a finding harms nobody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = int(_status("VmSize") * 1e6 + megabytes * 1e6)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is counted from now on
    resource.setrlimit(
        resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard)
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _resident() -> float:
    return _status("VmRSS")


def _peak() -> float:
    return _status("VmHWM")


def _status(key: str) -> float:
    """Return a line of this process's status, in MB."""
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith(f"{key}:"):
                return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(key)
