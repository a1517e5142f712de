"""The errors that a user can cause."""

from __future__ import annotations


class LiraError(Exception):
    """Something that the user can mend: one line with what was found, what was expected, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class ContextFull(LiraError):
    """A forward pass does not fit into what is left of the KV cache. The cache is as it was before."""
