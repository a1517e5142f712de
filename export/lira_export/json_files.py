"""Read JSON files of others: values are asked for by kind, and errors are one line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lira_engine.errors import LiraError

from .file_kinds import foreign_kind

_NO_DEFAULT: Any = object()
_SHOWN = 40


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return the object in a JSON file, with or without a byte order mark.

    ``what``: the file's content, as messages call it.

    Raises:
        LiraError: the file is missing, unreadable or not JSON, or does not hold an object.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise LiraError(f"{path} cannot be read ({error.strerror}); expected {what}") from None
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        data = json.loads(content.decode(encoding))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        kind = foreign_kind(path)
        if kind is not None and "JSON" not in kind:
            raise LiraError(f"{path} is {kind}") from None
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        raise LiraError(f"{path} is not JSON ({reason}), expected {what}: download the file again") from None
    if not isinstance(data, dict):
        raise LiraError(f"{path} holds a JSON {type(data).__name__}, expected an object: {what}")
    return data


class Section:
    """An object in a JSON file. Errors name the file and the path of the key.

    Keys that nobody asks for are ignored: other tools write many.

    Each method raises LiraError if the key is missing and has no default, or its value is of another kind or
    out of range.
    """

    def __init__(self, data: Mapping[str, Any], where: str) -> None:
        self._data = data
        self.where = where

    def __contains__(self, key: str) -> bool:
        return key in self._data

    @property
    def keys(self) -> list[str]:
        return list(self._data)

    def section(self, key: str, default: Mapping[str, Any] = _NO_DEFAULT) -> Section:
        return Section(self._get(key, "an object", default, dict), f"{self.where}.{key}")

    def integer(self, key: str, default: Any = _NO_DEFAULT, least: int = 1, most: int = 1 << 20) -> int:
        value = self._get(key, "an integer", default, int)
        if value is not default and not least <= value <= most:
            raise self.error(key, value, f"an integer from {least} to {most}")
        return value

    def number(self, key: str, default: Any = _NO_DEFAULT, least: float | None = None) -> float:
        """Return a finite number that is above 0, or at least ``least``."""
        value = self._get(key, "a number", default, (int, float))
        if value is default:
            return value
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or (number <= 0 if least is None else number < least):
            raise self.error(
                key, value, "a finite number " + ("above 0" if least is None else f"from {least:g}")
            )
        return number

    def text(self, key: str, default: Any = _NO_DEFAULT) -> str:
        return self._get(key, "a text", default, str)

    def flag(self, key: str, default: Any = _NO_DEFAULT) -> bool:
        return self._get(key, "true or false", default, bool)

    def integers(self, key: str, least: int = 1, most: int = 1 << 20) -> tuple[int, ...]:
        values = self._get(key, "a list of integers", _NO_DEFAULT, list)
        for value in values:
            if type(value) is not int or not least <= value <= most:
                raise self.error(key, values, f"a list of integers from {least} to {most}")
        return tuple(values)

    def numbers(self, key: str, count: int, above: float = -math.inf) -> tuple[float, ...]:
        expected = f"a list of {count} finite numbers" + (f" above {above:g}" if above > -math.inf else "")
        values = self._get(key, expected, _NO_DEFAULT, list)
        if len(values) != count or not all(type(v) in (int, float) and above < v < 1e9 for v in values):
            raise self.error(key, values, expected)
        return tuple(float(value) for value in values)

    def fixed(self, key: str, expected: Any) -> None:
        """Raise LiraError if the key has another value than ``expected``, the only one that is supported."""
        found = self._data.get(key)
        if found is not None and found != expected:
            raise self.error(key, found, json.dumps(expected))

    def value(self, key: str) -> Any:
        """Return the value, of whatever kind, or None."""
        return self._data.get(key)

    def error(self, key: str, found: object, expected: str) -> LiraError:
        if isinstance(found, int) and not isinstance(found, bool):
            text = _short(found)
        else:
            text = json.dumps(found, ensure_ascii=False, default=str)
        shown = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
        return LiraError(f"{self.where}.{key}: found {shown}, expected {expected}")

    def _get(self, key: str, expected: str, default: Any, kinds: type | tuple[type, ...]) -> Any:
        if key not in self._data:
            if default is _NO_DEFAULT:
                raise LiraError(f"{self.where}: key {key!r} is missing, expected {expected}")
            return default
        value = self._data[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise self.error(key, value, expected)
        return value


def _short(number: int) -> str:
    """Return the integer's text, or its length: Python refuses to print more than 4,300 digits."""
    return str(number) if abs(number) < 10**_SHOWN else f"an integer of {number.bit_length()} bits"
