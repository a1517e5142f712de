"""Read a tokenizer by the library `tokenizers`, whatever the file makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lira_engine.errors import OutOfMemory, memory_errors_told

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_REASON = 200  # characters
_UNKNOWN = "\ue000"  # for private use: no vocabulary has it


class NoTokenizer(Exception):
    """The library refuses it. The message is its reason, in one short line."""


def tokenizer_of(read: Callable[[], Tokenizer]) -> Tokenizer:
    """Return what `read` makes by the library.

    Raises NoTokenizer where it refuses or panics, also if it does so at text that the vocabulary lacks.
    """
    try:
        with memory_errors_told():
            tokenizer = read()
            tokenizer.encode(_UNKNOWN)
    except (OutOfMemory, ImportError):
        raise
    except BaseException as error:  # the library raises bare Exception
        if (
            isinstance(error, Exception) or type(error).__name__ == "PanicException"
        ):  # of Rust, not importable
            raise NoTokenizer((" ".join(str(error).split()) or type(error).__name__)[:_REASON]) from None
        raise
    return tokenizer
