"""The command `lira-edge`: finds its sub-commands by entry point and imports only the one that is called."""

from __future__ import annotations

import ast
import functools
import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from lira_engine.atomic import system_error
from lira_engine.errors import LiraError
from lira_engine.extras import DISTRIBUTION, extra_of, install_line, missing_packages

GROUP = "lira_edge.commands"
# What the parser says about arguments. Its base class moved between versions of typer and click.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one sub-command and exit: 0, or 2 for anything that the user can mend, or 130 when interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a code page of Windows lacks some of our signs
            stream.reconfigure(errors="replace")
    commands = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    if not arguments or arguments[0] in ("--help", "-h"):
        _list_commands(commands)
    elif arguments[0] == "--version":
        print(f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}")
    elif arguments[0] not in commands:
        _fail(f"there is no command {arguments[0]!r}; there are: {', '.join(sorted(commands))}")
    else:
        try:
            _run(commands[arguments[0]], arguments[1:])
        except KeyboardInterrupt:  # while it is imported
            _interrupted()
    raise SystemExit(0)


def _run(entry: metadata.EntryPoint, arguments: list[str]) -> None:
    lacking = _lacking(entry)
    if lacking:
        extra = extra_of(entry.module)
        assert extra is not None
        _fail(f"`lira-edge {entry.name}` needs {', '.join(lacking)}: run {install_line(extra)}")
    app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    try:
        app.command(entry.name)(_guarded(entry.load()))
    except LiraError as error:  # ONNX Runtime, which only extras bring, may be missing
        _fail(str(error))
    name = f"lira-edge {entry.name}"
    try:
        code = typer.main.get_command(app).main(arguments, prog_name=name, standalone_mode=False)
    except _UsageError as error:
        reason = " ".join(error.format_message().split())  # type: ignore[attr-defined]
        _fail(f"{reason.rstrip('.')}: see `{name} --help`")
    except typer.Abort:
        _interrupted()
    raise SystemExit(code or 0)


def _guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with its errors turned into one line and an exit code."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            found = command(*args, **kwargs)
            sys.stdout.flush()
            return found
        except LiraError as error:
            _fail(str(error))
        except OSError as error:
            if error.errno is None:  # not the system's
                raise
            if isinstance(error, BrokenPipeError):
                _end_where_nobody_reads()
            _fail(system_error(error))
        except KeyboardInterrupt:
            _interrupted()

    return guarded


def _end_where_nobody_reads() -> None:
    """End quietly where it is the output that leads nowhere any more, not another pipe."""
    try:
        print(flush=True)  # what was to be written before may be gone already
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None


def _interrupted() -> NoReturn:
    print("interrupted", file=sys.stderr)
    raise SystemExit(130)


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.splitlines())}", file=sys.stderr)
    raise SystemExit(2)


def _list_commands(commands: dict[str, metadata.EntryPoint]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, entry in sorted(commands.items()):
        lacking = _lacking(entry)
        note = f"  (not installed: {install_line(extra_of(entry.module) or '')})" if lacking else ""
        table.add_row(f"  {name}", _summary(entry) + note)
    console = Console(highlight=False, markup=False)
    console.print("Usage: lira-edge COMMAND [ARGUMENTS]\n\nCommands (lira-edge COMMAND --help says more):")
    console.print(table)
    console.print("\nOptions: --version, --help")


def _lacking(entry: metadata.EntryPoint) -> list[str]:
    extra = extra_of(entry.module)
    return missing_packages(extra) if extra else []


def _summary(entry: metadata.EntryPoint) -> str:
    """First line of the command's docstring, read from its source: importing it may need what is missing."""
    package, _, rest = entry.module.partition(".")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return ""
    file = Path(spec.submodule_search_locations[0], *rest.split(".")).with_suffix(".py")
    try:
        body = ast.parse(file.read_text(encoding="utf-8")).body
    except OSError:
        return ""
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == entry.attr:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""
