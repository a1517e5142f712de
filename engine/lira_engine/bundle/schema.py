"""Read JSON objects into frozen dataclasses and write them back, with errors that name the key."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

from lira_engine.errors import LiraError

T = TypeVar("T")

_LARGEST = sys.float_info.max
_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}


def read(cls: type[T], value: object, where: str) -> T:
    """Return an instance of dataclass `cls` from parsed JSON. `where` begins the key's path in messages.

    Fields: int, float, str, bool, Any, dataclasses, tuple[X, ...], dict[str, X], and unions of these.
    A missing key takes the field's default. Raises LiraError if it has none, and for unknown keys and values
    of another type.
    """
    return typing.cast(T, _read(cls, value, where))


def write(value: Any) -> Any:
    """Return the JSON form of an instance that `read` builds."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: write(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: write(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [write(item) for item in value]
    return value


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _read(kind: Any, value: Any, where: str) -> Any:
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _read_dataclass(kind, value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        _expect(isinstance(value, list), where, value, "a list")
        return tuple(_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        _expect(isinstance(value, dict), where, value, "an object")
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin in (types.UnionType, typing.Union):
        return _read_union(arguments, value, where)
    if kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        # Larger integers are no floats: JSON has integers of any length.
        _expect(number and -_LARGEST <= value <= _LARGEST, where, value, _NAMES[float])
        value = float(value)
    else:
        _expect(type(value) is kind, where, value, _NAMES[kind])
    return value


def _read_dataclass(cls: type, value: Any, where: str) -> Any:
    _expect(isinstance(value, dict), where, value, "an object")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(value) - set(fields))
    if unknown:
        raise LiraError(f"{where}: unknown key {unknown[0]!r}, expected some of {', '.join(fields)}")
    given = {}
    for name, field in fields.items():
        if name in value:
            given[name] = _read(_hints(cls)[name], value[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise LiraError(f"{where}: key {name!r} is missing")
    return cls(**given)


def _read_union(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    members = [kind for kind in kinds if kind is not type(None)]
    if value is None and len(members) < len(kinds):
        return None
    if len(members) == 1:
        return _read(members[0], value, where)
    for kind in members:
        try:
            return _read(kind, value, where)
        except LiraError:
            continue
    expected = " or ".join(_NAMES.get(kind, str(kind)) for kind in members)
    raise LiraError(f"{where}: found {_short(value)}, expected {expected}")


def _expect(condition: bool, where: str, value: object, expected: str) -> None:
    if not condition:
        raise LiraError(f"{where}: found {_short(value)}, expected {expected}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
