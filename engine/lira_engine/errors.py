"""The errors that a user can cause."""

from __future__ import annotations

import os
import shlex
from pathlib import Path


class LiraError(Exception):
    """Something that the user can mend: one line with what was found, what was expected, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


def quoted(path: Path) -> str:
    """A path as a command in a message takes it."""
    text = str(path)
    if text.startswith("-"):
        text = os.path.join(".", text)
    if os.name == "nt":
        return f'"{text}"' if " " in text else text
    return shlex.quote(text)


class ContextFull(LiraError):
    """A forward pass does not fit into what is left of the KV cache. The cache is as it was before."""
