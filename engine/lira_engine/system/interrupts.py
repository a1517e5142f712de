"""Answer Ctrl-C at any moment with one line and exit code 130.

Before a command starts and after it has ended, the process exits at once. In between, KeyboardInterrupt
unwinds the command. The interpreter's own cleanup ignores Ctrl-C: by then the exit code is settled.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # built in; `signal` itself imports ten files
import _thread
import os
import sys
import time

# Until Ctrl-C is handled, Python prints a traceback for it: what takes time is imported after that.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Any

EXIT_CODE = 130
_RETRY_S = 0.05
_GIVE_UP_S = 5.0
# Python that torch calls from C++, some of which aborts if an exception comes back.
_CALLED_BACK = ("__torch_function__", "__torch_dispatch__")


class _Progress:
    """How far Ctrl-C has come. Plain values: a handler that waits for a lock may wait for its own thread."""

    main_thread = 0
    received = False
    reported = False
    first_at = 0.0


_progress = _Progress()


def end_at_once() -> None:
    """Make Ctrl-C end the process from now on."""
    _set_handler(_end)


def unwind() -> None:
    """Make Ctrl-C raise KeyboardInterrupt from now on, and hide what libraries print about it."""
    import atexit
    import threading

    _progress.main_thread = threading.get_ident()
    atexit.register(_ignore)  # registered before the libraries' own, so called after them
    _set_handler(_raise)
    sys.excepthook = _unless_received(sys.excepthook)  # C code prints exceptions through it
    sys.unraisablehook = _repeat_if_lost
    threading.excepthook = _unless_received(threading.excepthook)


def _set_handler(handler: Callable[[int, FrameType | None], None]) -> None:
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in a script's background jobs
        signal.signal(signal.SIGINT, handler)


def received() -> bool:
    """Return whether Ctrl-C was pressed: any later error comes from it."""
    return _progress.received


def report() -> int:
    """Print "interrupted" once; return the exit code."""
    already = _progress.reported and _progress.received
    _progress.reported = True
    if not already:
        print("interrupted", file=sys.stderr, flush=True)
    return EXIT_CODE


def _end(number: int, frame: FrameType | None) -> None:
    if not _progress.reported:
        os.write(2, b"interrupted\n")
    os._exit(EXIT_CODE)


def _ignore() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _raise(number: int, frame: FrameType | None) -> None:
    if not _progress.received:
        _progress.received, _progress.first_at = True, time.monotonic()
    if not _in_extension(frame):
        raise KeyboardInterrupt
    if time.monotonic() - _progress.first_at > _GIVE_UP_S:
        _end(number, frame)  # the next run removes what is left
    _interrupt_again()


def _in_extension(frame: FrameType | None) -> bool:
    """Return whether an extension is being imported or calls back: if that raises, some print a traceback,
    some abort."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename == "<frozen importlib._bootstrap>" or code.co_name in _CALLED_BACK:
            return True
        frame = frame.f_back
    return False


def _interrupt_again() -> None:
    # Not by a Timer: starting one takes locks of `threading`, which the interrupted thread may hold.
    try:
        _thread.start_new_thread(_signal_main_thread, ())
    except RuntimeError:  # the system refuses threads
        _end(signal.SIGINT, None)


def _signal_main_thread() -> None:
    time.sleep(_RETRY_S)
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(_progress.main_thread, signal.SIGINT)  # wakes it if it waits
    else:
        signal.raise_signal(signal.SIGINT)


def _repeat_if_lost(what: Any) -> None:
    """Repeat a KeyboardInterrupt that was raised where nothing can be, such as in a destructor."""
    if issubclass(what.exc_type, KeyboardInterrupt):
        _interrupt_again()
    elif not received():
        sys.__unraisablehook__(what)


def _unless_received(hook: Any) -> Any:
    def shown(*error: type[BaseException] | BaseException | TracebackType | None) -> None:
        if not received():
            hook(*error)

    return shown
