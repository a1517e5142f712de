"""The command line that repeats a run."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from lira_engine.command_line import command_text


def reproducing_line(verb: str, request: Any, json: Path | None = None) -> str:
    """Return `reproduce: lira-edge VERB BUNDLE` with the options of `request` that are not the defaults.

    `request` is a dataclass whose fields are the parameters of the command; `bundle` is the argument.
    """
    options = {field.name: getattr(request, field.name) for field in fields(request)}
    bundle = options.pop("bundle")
    defaults = {field.name: field.default for field in fields(request)}
    given = {name: value for name, value in options.items() if value != defaults[name]}
    return f"reproduce: {command_text(verb, bundle, **given, json=json)}"
