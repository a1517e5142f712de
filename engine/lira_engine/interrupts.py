"""Ctrl-C at any moment: one line and exit code 130.

As long as a command has begun nothing, or when it has ended, the process ends at once. In between
KeyboardInterrupt unwinds what the command has begun.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

EXIT_CODE = 130
_AGAIN = 0.05  # seconds
_received = threading.Event()
_reported = threading.Event()


def end_at_once() -> None:
    """From now on Ctrl-C ends the process."""
    signal.signal(signal.SIGINT, _end)


def unwind() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, and what libraries say of it meanwhile is not shown."""
    signal.signal(signal.SIGINT, _raise)
    sys.excepthook = _unless_received(sys.excepthook)  # C code prints exceptions through it
    sys.unraisablehook = _not_lost
    threading.excepthook = _unless_received(threading.excepthook)


def received() -> bool:
    """Whether Ctrl-C was pressed: whatever error follows comes from it."""
    return _received.is_set()


def report() -> int:
    """Say so, once. The exit code."""
    already = _reported.is_set() and received()
    _reported.set()
    if not already:
        print("interrupted", file=sys.stderr, flush=True)
    return EXIT_CODE


def _end(number: int, frame: FrameType | None) -> None:
    if not _reported.is_set():
        os.write(2, b"interrupted\n")
    os._exit(EXIT_CODE)


def _raise(number: int, frame: FrameType | None) -> None:
    _received.set()
    # Extensions do not expect it while they are imported: some print a traceback, some abort the process.
    if _is_importing(frame):
        _interrupt_again()
    else:
        raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _interrupt_again() -> None:
    timer = threading.Timer(_AGAIN, lambda: signal.raise_signal(signal.SIGINT))
    timer.daemon = True
    timer.start()


def _not_lost(what: Any) -> None:
    """Where nothing can be raised, in a destructor, KeyboardInterrupt would get lost."""
    if issubclass(what.exc_type, KeyboardInterrupt):
        _interrupt_again()
    elif not received():
        sys.__unraisablehook__(what)


def _unless_received(hook: Any) -> Any:
    def shown(*error: type[BaseException] | BaseException | TracebackType | None) -> None:
        if not received():
            hook(*error)

    return shown
