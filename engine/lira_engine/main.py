"""The command `lira-edge`: how it begins, and how it ends.

Imports next to nothing before Ctrl-C is taken care of.
"""

from __future__ import annotations

import io
import mmap
import os
import sys
import warnings
from contextlib import suppress

from lira_engine.system import interrupts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

_LEAST_MEMORY = 192 << 20


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one sub-command and exit: 0, or 2 for anything that the user can mend, or 130 when interrupted.

    arguments: those of the process where they are None; then the process is taken to be the command's own.
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
            interrupts.end_at_once()  # nothing to clean up any more
    except KeyboardInterrupt:  # while an end was reported
        code = interrupts.report()
    if interrupts.received() and code == interrupts.EXIT_CODE:
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)  # threads may go on for long, and nobody waits for them any more
    raise SystemExit(code)


def _prepare_process() -> None:
    """Make up for what a shell or a service left out, and keep libraries from talking to the user."""
    for descriptor in range(3):  # else the next file that is opened is taken for the closed output
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
    # NumPy's products are small here. OpenBLAS takes memory for each thread, and where the system refuses
    # one it prints six lines and interrupts the process.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _run(arguments: Sequence[str]) -> int:
    """The exit code; what ended the command is said in one line. A bug keeps its traceback."""
    for stream in (sys.stdout, sys.stderr):
        # Code pages of Windows lack some of our signs, and UTF-8 the bytes of a name that is not UTF-8.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        # OpenBLAS ends the process where it gets no memory, and NumPy loads it: any command needs this much.
        with mmap.mmap(-1, _LEAST_MEMORY):
            pass
        from lira_engine.commands import run

        return run(list(arguments))
    except SystemExit:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or interrupts.received():
            return interrupts.report()
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 141
        reason = _reason(error)
        if reason is None:
            raise
        print(f"error: {' '.join(reason.splitlines())}", file=sys.stderr)
        return 2


def _reason(error: BaseException) -> str | None:
    """What the user can mend, or None."""
    from lira_engine.errors import LiraError, out_of_memory
    from lira_engine.system.atomic import system_error

    refused = out_of_memory(error)
    if refused is not None:
        return refused
    if isinstance(error, LiraError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:  # the system's
        return system_error(error)
    return None


def _nobody_reads() -> bool:
    """Whether it is the output that leads nowhere any more, not another pipe."""
    try:
        print(flush=True)  # what was to be written before may be gone already
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False
