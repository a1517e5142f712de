"""End a child process when the process that started it is gone, however that ended."""

from __future__ import annotations

import os
import select
import threading

CODE = 1
"""Exit code of a process that lost its parent."""


def end_with_parent() -> None:
    """From now on, exit when the other end of the standard input closes, which the parent keeps open.

    Reads nothing where the system tells so (not on Windows). Call it once the first input has been read.
    """
    threading.Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    # Native code runs without Python's lock, so this thread can. `sys.stdin` would hold a lock at exit.
    if hasattr(select, "poll"):
        waiting = select.poll()
        waiting.register(0, 0)  # no event but the end
        waiting.poll()
    else:
        while os.read(0, 1):
            pass
    os._exit(CODE)
