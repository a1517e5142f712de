"""Build options: one dataclass per target, whose fields are options of `lira-edge build`.

The command takes its options, their help and their defaults from these fields; so do the records of builds
and the commands in error messages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from lira_engine.errors import LiraError

OptionsType = TypeVar("OptionsType", bound="Options")
_KEY = "option"
Weights = Literal["float", "quantized", "mixed"]
"""Weights of the language model: as they are, all quantized alike, or each as a recipe says."""


@dataclass(frozen=True)
class Option:
    """A field of an options class, as the command line has it.

    Attributes:
        help: what the option does; its choices and default are added. choices: all values that it takes; ()
            if the options' `check` decides. weights: of the language model in builds on which it has an
            effect. argument: its name on the command line, without dashes.
    """

    name: str
    help: str
    default: Any
    choices: tuple[Any, ...]
    weights: tuple[Weights, ...]
    argument: str

    @property
    def label(self) -> str:
        """Its name in messages."""
        return self.name.replace("_", " ")

    def parsed(self, text: Any) -> Any:
        """Return a command line value in the field's type."""
        if isinstance(self.default, tuple) and isinstance(text, str):
            return tuple(part.strip() for part in text.split(","))
        return text

    def written(self, value: Any) -> str:
        """Return the argument that sets the option to `value`, with a space before it."""
        return f" --{self.argument}" if value is True else f" --{self.argument} {self.text(value)}"

    @staticmethod
    def text(value: Any) -> Any:
        """Return a field's value in the form of the command line."""
        return ",".join(value) if isinstance(value, tuple) else value

    def check(self, value: Any) -> None:
        """Raises LiraError if `value` has another type than the default, or is not one of the choices."""
        listed = isinstance(value, tuple) and all(isinstance(one, str) for one in value)
        if type(value) is not type(self.default) or (isinstance(value, tuple) and not listed):
            raise LiraError(f"{self.label} {value!r}: expected {_kind(self.default)}")
        if self.choices and value not in self.choices:
            raise LiraError(f"{self.label} {value!r}: expected {_listed(self.choices)}")


def option(
    default: Any,
    help: str,
    choices: Sequence[Any] = (),
    *,
    weights: Sequence[Weights] = ("float", "quantized", "mixed"),
    argument: str | None = None,
) -> Any:
    """Return a field of an options class. See `Option`."""
    facts = {"help": help, "choices": tuple(choices), "weights": tuple(weights), "argument": argument}
    return dataclasses.field(default=default, metadata={_KEY: facts})


@dataclass(frozen=True)
class Options:
    """Base class of a target's options. Raises LiraError for values that a field does not take."""

    def __post_init__(self) -> None:
        for one in self.all():
            one.check(getattr(self, one.name))
        self.check()

    def check(self) -> None:
        """Raises LiraError for values that break a rule beyond `Option.choices`."""

    @classmethod
    def all(cls) -> tuple[Option, ...]:
        """Return the options, in the order of the fields."""
        found = []
        for field in fields(cls):
            facts = dict(field.metadata[_KEY])
            facts["argument"] = facts["argument"] or field.name.replace("_", "-")
            found.append(Option(name=field.name, default=field.default, **facts))
        return tuple(found)

    @classmethod
    def effective(cls, weights: Weights) -> tuple[Option, ...]:
        """Return the options that have an effect in a build with such weights of the language model."""
        return tuple(one for one in cls.all() if weights in one.weights)

    @classmethod
    def given(
        cls: type[OptionsType], values: Mapping[str, Any], target: str, precision: str, weights: Weights
    ) -> OptionsType:
        """Return options from the `values` that a command line sets; the others have their defaults.

        Raises LiraError for an option that the target lacks or that has no effect at this precision, and for
        a value that an option does not take.
        """
        known = {one.name: one for one in cls.all()}
        effective = {one.name for one in cls.effective(weights)}
        for name in sorted(values):
            label = name.replace("_", " ")
            if name not in known:
                raise LiraError(f"target {target} has no option {label}: leave it out")
            if name not in effective:
                raise LiraError(f"{target}-{precision} engines have no option {label}: leave it out")
        return cls(**{name: known[name].parsed(value) for name, value in values.items()})

    def recorded(self, weights: Weights) -> dict[str, Any]:
        """Return the effective options as JSON values."""
        found = {one.name: getattr(self, one.name) for one in self.effective(weights)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    @classmethod
    def read(cls: type[OptionsType], recorded: Mapping[str, Any], weights: Weights) -> OptionsType:
        """Return the options that `recorded` wrote, ignoring other keys. Raises LiraError if one is missing
        or wrong."""
        values: dict[str, Any] = {}
        for one in cls.effective(weights):
            if one.name not in recorded:
                raise LiraError(f"lacks option {one.name}")
            value = recorded[one.name]
            values[one.name] = tuple(value) if isinstance(value, list) else value
        return cls(**values)

    @classmethod
    def arguments(cls, recorded: Mapping[str, Any], weights: Weights) -> str:
        """Return the arguments of `lira-edge build` for the recorded options that are not the defaults, a
        space before each; "" for a record that no build wrote."""
        try:
            options = cls.read(recorded, weights)
        except LiraError:
            return ""
        chosen = ((one, getattr(options, one.name)) for one in cls.effective(weights))
        return "".join(one.written(value) for one, value in chosen if value != one.default)


def _kind(default: Any) -> str:
    names = {bool: "true or false", int: "a whole number", str: "text", tuple: "a list"}
    return names.get(type(default), type(default).__name__)


def _listed(choices: Sequence[Any]) -> str:
    *most, last = map(str, choices)
    return f"{', '.join(most)} or {last}" if most else last
