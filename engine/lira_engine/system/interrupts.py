"""Ctrl-C at any moment: one line and exit code 130.

As long as a command has begun nothing, or when it has ended, the process ends at once. In between
KeyboardInterrupt unwinds what the command has begun. What the interpreter tidies up at its very end takes no
notice: by then the exit code is settled.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Any

EXIT_CODE = 130
_AGAIN = 0.05  # seconds
_PATIENCE = 5.0  # seconds
# Python that torch calls from C++, some of which ends the process where an exception comes back.
_CALLED_BACK = ("__torch_function__", "__torch_dispatch__")
_received = threading.Event()
_reported = threading.Event()
_since = 0.0


def end_at_once() -> None:
    """From now on Ctrl-C ends the process."""
    _handle_by(_end)


def unwind() -> None:
    """From now on Ctrl-C raises KeyboardInterrupt, and what libraries say of it meanwhile is not shown."""
    atexit.register(_ignore)  # before libraries register theirs, and so called after them
    _handle_by(_raise)
    sys.excepthook = _unless_received(sys.excepthook)  # C code prints exceptions through it
    sys.unraisablehook = _not_lost
    threading.excepthook = _unless_received(threading.excepthook)


def _handle_by(handler: Callable[[int, FrameType | None], None]) -> None:
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in the background of a shell's script
        signal.signal(signal.SIGINT, handler)


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


def _ignore() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _raise(number: int, frame: FrameType | None) -> None:
    global _since
    if not _received.is_set():
        _received.set()
        _since = time.monotonic()
    if not _is_unexpected(frame):
        raise KeyboardInterrupt
    if time.monotonic() - _since > _PATIENCE:
        _end(number, frame)  # the next run removes what is left
    _interrupt_again()


def _is_unexpected(frame: FrameType | None) -> bool:
    """Whether an extension is being imported, or calls back: some print a traceback where an exception comes
    out of that, some end the process."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename == "<frozen importlib._bootstrap>" or code.co_name in _CALLED_BACK:
            return True
        frame = frame.f_back
    return False


def _interrupt_again() -> None:
    timer = threading.Timer(_AGAIN, _signal_main_thread)
    timer.daemon = True
    timer.start()


def _signal_main_thread() -> None:
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, signal.SIGINT)  # it wakes up where it waits for something
    else:
        signal.raise_signal(signal.SIGINT)


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
