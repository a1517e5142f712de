"""Make the options of `lira-edge build` from those of the targets."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from lira_engine.engines.options import Option
from lira_engine.targets import TARGETS


def target_help() -> str:
    """Return the targets with their titles."""
    return "; ".join(f"{name} ({target.title})" for name, target in TARGETS.items())


def precision_help() -> str:
    """Return the precisions of the targets, the default first."""
    by_target: dict[str, list[str]] = {}
    for name, target in TARGETS.items():
        by_target.setdefault(", ".join(target.precisions), []).append(name)
    return "; ".join(f"{', '.join(names)}: {listed}" for listed, names in by_target.items()) + "."


def with_build_options(command: Callable[..., None]) -> Callable[..., None]:
    """Return `command` with an option in the place of `**given` for each option that any target has."""
    named: dict[str, dict[str, Option]] = {}
    for name, target in TARGETS.items():
        for option in target.options.all():
            named.setdefault(option.name, {})[name] = option
    hints = get_type_hints(command, include_extras=True)
    parameters = [
        one.replace(annotation=hints[one.name])
        for one in inspect.signature(command).parameters.values()
        if one.kind is not one.VAR_KEYWORD
    ]
    for name, by_target in named.items():
        parameters.append(_parameter(name, by_target))
    hints = {one.name: one.annotation for one in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {**hints, "return": None}
    return command


def _parameter(name: str, by_target: dict[str, Option]) -> inspect.Parameter:
    option = next(iter(by_target.values()))
    kind: Any = type(option.default) if isinstance(option.default, (bool, int)) else str
    flag = f"--{option.argument}"
    info = typer.Option(flag, help=_help(by_target), show_default=False)
    default = False if kind is bool else None
    annotation: Any = Annotated[kind if kind is bool else kind | None, info]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _help(by_target: dict[str, Option]) -> str:
    """Return what the option does, and its choices for each target."""
    texts: dict[str, dict[str, list[str]]] = {}
    for target, option in by_target.items():
        texts.setdefault(option.help, {}).setdefault(_choices(option), []).append(target)
    found = []
    for text, by_choices in texts.items():
        listed = "; ".join(
            f"{', '.join(names)}: {choices}" if choices else ", ".join(names)
            for choices, names in by_choices.items()
        )
        found.append(f"{text[:1].upper()}{text[1:]}. {listed}.")
    return " ".join(found)


def _choices(option: Option) -> str:
    """Return text such as "32 (default), 64, 128"; "" for a flag."""
    if isinstance(option.default, bool) or not (option.choices or option.default):
        return ""
    return ", ".join(
        f"{one} (default)" if one == option.default else str(one)
        for one in option.choices or (option.default,)
    )
