"""Checks of callers' arguments. Errors name the argument, what was found and what was expected."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from numbers import Real

from lira_engine.errors import LiraError
from lira_engine.system.text import is_utf8


def text(name: str, value: object) -> str:
    """Return a text. Raises LiraError for other types, and for bytes that are not UTF-8 (lone surrogates)."""
    if not isinstance(value, str):
        raise LiraError(f"{name} is {_shown(value)}; expected text")
    if not is_utf8(value):
        raise LiraError(f"{name} is {_shown(value)}, which is not UTF-8; expected text in UTF-8")
    return value


def optional_text(name: str, value: object) -> str | None:
    """`text`, or None."""
    return None if value is None else text(name, value)


def words(name: str, value: object) -> list[str]:
    """Return a list of texts. Raises LiraError for anything else, a single text included."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise LiraError(f"{name} is {_shown(value)}; expected several words")
    return [text(f"one of {name}", word) for word in value]


def whole(name: str, value: object, expected: str, least: int | None = None) -> int:
    """Return an int from a whole number, also NumPy's. Raises LiraError, which says what is `expected`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
        if least is None or number >= least:
            return number
    except TypeError:
        pass
    raise LiraError(f"{name} is {_shown(value)}; expected {expected}")


def optional_whole(name: str, value: object, expected: str, least: int | None = None) -> int | None:
    """`whole`, or None."""
    return None if value is None else whole(name, value, expected, least)


def real(name: str, value: object, expected: str) -> float:
    """Return a float from a number. Raises LiraError for other types, and for numbers too large for it."""
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise LiraError(f"{name} is {_shown(value)}; expected {expected}")


def _shown(value: object) -> str:
    """Return a value, or its type, as one short line."""
    if isinstance(value, (str, bytes, int, float)) or value is None:
        shown = ascii(value) if isinstance(value, str) else repr(value)
        return shown if len(shown) <= 60 else f"{shown[:58]}.."
    return f"of type {type(value).__name__}"
