"""The command `lira-edge`: set up the process, run a sub-command, report errors, exit.

Imports almost nothing before Ctrl-C is handled.
"""

from __future__ import annotations

import os
import sys

from lira_engine.system import interrupts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import NoReturn

_LEAST_MEMORY = 192 << 20


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one sub-command and exit: 0, or 2 for an error that the user can mend, or 130 after Ctrl-C.

    arguments: None takes the process's own, and sets up its signals and streams.
    """
    if arguments is not None:
        raise SystemExit(_run(arguments))
    interrupts.end_at_once()  # nothing to clean up yet
    _prepare_process()
    try:
        try:
            interrupts.unwind()
            code = _run(sys.argv[1:])
        finally:
            interrupts.end_at_once()  # nothing left to clean up
    except KeyboardInterrupt:  # during the report of another end
        code = interrupts.report()
    if interrupts.received():  # even if the command ended before the interrupt could be raised
        from contextlib import suppress

        code = interrupts.report()
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)  # threads may run on for long: do not wait for them
    raise SystemExit(code)


def _prepare_process() -> None:
    """Replace closed standard streams, and keep libraries from printing to the user."""
    import warnings

    for descriptor in range(3):  # else the next opened file gets the descriptor of the closed output
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115
            setattr(sys, name, nowhere)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    sys.excepthook = _print_traceback
    # NumPy's matmuls are small here. OpenBLAS allocates memory for each thread, and if the system refuses a
    # thread, it prints six lines and interrupts the process.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a bug's traceback, which may quote names and contents of files."""
    from traceback import format_exception

    from lira_engine.system.text import shown

    sys.stderr.write(shown("".join(format_exception(kind, error, trace))))


def _run(arguments: Sequence[str]) -> int:
    """Run a sub-command and return the exit code. Prints an error as one line; a bug keeps its traceback."""
    import io
    import mmap

    for stream in (sys.stdout, sys.stderr):
        # Windows code pages lack some of our characters; UTF-8 cannot encode the bytes of some file names.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        # OpenBLAS, which NumPy loads, ends the process if it gets no memory: any command needs this much.
        with mmap.mmap(-1, _LEAST_MEMORY):
            pass
        from lira_engine.commands import run

        return run(list(arguments))
    except SystemExit:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or interrupts.received():
            return interrupts.report()
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return 141
        from lira_engine.system.text import error_line

        reason = _reason(error)
        if reason is None:
            raise
        print(error_line(reason), file=sys.stderr)
        return 2


def _reason(error: BaseException) -> str | None:
    """Return the message of an error that the user can mend, or None."""
    from lira_engine.errors import LiraError, out_of_memory
    from lira_engine.system.atomic import system_error

    refused = out_of_memory(error)
    if refused is not None:
        return refused
    if isinstance(error, LiraError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:  # from the system, not a library
        return system_error(error)
    return None


def _output_is_closed() -> bool:
    """Return whether the reader of the standard output is gone, not that of another pipe."""
    try:
        print(flush=True)  # the buffer may be empty already
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
