"""Errors that a user can mend."""

from __future__ import annotations

import errno
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class LiraError(Exception):
    """An error that the user can mend: one line with what was found, what was expected, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class OutOfMemory(LiraError):
    """The system refused memory or threads (see `out_of_memory`)."""


class DeviceFailed(LiraError):
    """A GPU, its driver or its libraries refused work, whatever was asked of them."""


class BundleChanged(LiraError):
    """A file that an open bundle reads is not what it was: what its engines answer cannot be trusted."""


# Messages about refused memory of the C library, ONNX Runtime, torch, oneDNN, OpenCV and CUDA. A full "static
# TLS block" is no lack of memory, although its message says so.
_NO_MEMORY = re.compile(
    r"bad_?alloc|(?:cannot|can't|could not|failed to|unable to) allocate(?! memory in static)"
    r"|out ?of ?memory|insufficient memory|not enough memory|AllocateRawInternal|failed to map segment"
    r"|cannot map zero-fill pages|memory allocation .*failed|could not create a primitive",
    re.IGNORECASE,
)
_NO_THREADS = re.compile(
    r"pthread_create|can't start new thread|thread creation failed|ThreadPoolBuildError"
    r"|failed to spawn thread|thread constructor failed",
    re.IGNORECASE,
)
_FORBIDDEN = re.compile(r"operation not permitted|permission denied", re.IGNORECASE)


def out_of_memory(error: BaseException) -> str | None:
    """Return the message for the user if `error` comes from refused memory or threads, else None.

    Libraries raise their own classes for this, an import raises ImportError: the messages of the error and of
    its causes decide.
    """
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        found = _refusal(cause)
        if found is not None:
            return found
        cause = cause.__cause__ or cause.__context__
    return None


@contextmanager
def memory_errors_told() -> Iterator[None]:
    """Raises OutOfMemory if the system refuses memory or threads to the block, whatever a library raises."""
    try:
        yield
    except Exception as error:
        refused = out_of_memory(error)
        if refused is None:
            raise
        raise OutOfMemory(refused) from error


def _refusal(error: BaseException) -> str | None:
    if isinstance(error, OutOfMemory):
        return str(error)
    if isinstance(error, (LiraError, ValueError, LookupError, TypeError)):  # they quote what users wrote
        return None
    number = error.errno if isinstance(error, OSError) else None
    said = " ".join(str(error if number is None else os.strerror(number)).split())
    waiting = hasattr(error, "characters_written")  # EAGAIN of a full output pipe, not of a fork
    threads, memory = _NO_THREADS.search(said), _NO_MEMORY.search(said)
    if threads or (number == errno.EAGAIN and not waiting):
        return (
            f"the system refused a thread or a process ({_told(said, threads)}): take fewer threads "
            "(--threads 1, OMP_NUM_THREADS=1), close other programs, or raise the limits of memory and "
            "processes (ulimit -v, ulimit -u, the container's)"
        )
    if isinstance(error, MemoryError) or number == errno.ENOMEM or memory:
        if _FORBIDDEN.search(said):  # a disk that is mounted noexec
            return None
        return (
            f"out of memory ({_told(said, memory)}): close other programs, add swap, raise "
            "the limit (ulimit -v, the container's), or take a smaller model or precision"
        )
    return None


def _told(said: str, found: re.Match[str] | None) -> str:
    """Return at most 120 characters of a library's message; if it is longer, from the recognised words on."""
    if len(said) > 120 and found is not None:
        said = said[found.start() :]
    return said[:120] or "the system refused it"


def quoted(path: Path) -> str:
    """Return a path, quoted for a command in a message."""
    text = str(path)
    if text.startswith("-"):
        text = os.path.join(".", text)
    if os.name == "nt":
        return f'"{text}"' if " " in text else text
    return shlex.quote(text)


def how_it_ended(code: int) -> str:
    """Return how a child process ended, by its exit code, which is negative if a signal killed it."""
    if code >= 0:
        return f"ended with code {code}"
    return f"was killed by signal {-code}" + (" (most likely too little memory)" if code == -9 else "")


class Closed(LiraError, ValueError):
    """A closed object is used: a mask, an image or a question after `Lira.close`."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is closed and its results are gone: ask, and read masks, before closing it")


class ContextFull(LiraError):
    """A forward pass does not fit into the rest of the KV cache, which is unchanged."""
