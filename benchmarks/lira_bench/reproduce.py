"""The command line that repeats a run, which every long command ends with."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

from rich.console import Console

from lira_bench.json_output import STDOUT, write_json
from lira_engine.command_line import program_text


def finish(console: Console, line: str, json: Path | None, figures: Callable[[], object]) -> None:
    """Print the line, and write the figures if `--json` names a place; on stdout they follow the line."""
    if json is not None and json != STDOUT:
        write_json(console, json, figures())
    console.print(line, soft_wrap=True)
    if json == STDOUT:
        write_json(console, json, figures())


def request_line(verb: str, request: Any, json: Path | None = None) -> str:
    """Return the line for `lira-edge VERB BUNDLE`.

    `request` is a dataclass whose fields are the parameters of the command; `bundle` is the argument.
    """
    options = dict(vars(request))
    return function_line(f"lira-edge {verb}", type(request), options.pop("bundle"), **options, json=json)


def function_line(program: str, function: Callable[..., Any], *positional: object, **options: object) -> str:
    """Return `reproduce: PROGRAM`, the arguments, and the options that are not defaults of `function`."""
    parameters = signature(function).parameters
    defaults = {name: parameters[name].default if name in parameters else None for name in options}
    given = {name: value for name, value in options.items() if value != defaults[name]}
    return f"reproduce: {program_text(program, *positional, **given)}"


def parser_line(program: str, parser: ArgumentParser, asked: Namespace, positional: str) -> str:
    """Return the line for what `parser` read, whose one argument is named `positional`."""
    options = dict(vars(asked))
    argument = options.pop(positional)
    given = {name: value for name, value in options.items() if value != parser.get_default(name)}
    return f"reproduce: {program_text(program, argument, **given)}"
