"""Find the sub-commands of `lira-edge` by entry point, and import only the one that is called."""

from __future__ import annotations

import ast
import os
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from lira_engine.errors import LiraError
from lira_engine.system.extras import DISTRIBUTION, lacking
from lira_engine.system.terminal import plain_console

GROUP = "lira_edge.commands"
_PROGRAM = "lira-edge"
_COMPLETE = "_LIRA_EDGE_COMPLETE"
"""Environment variable that the script of --install-completion sets to ask for completions."""
# The parser's error about arguments. It moved between versions of typer and click.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def run(arguments: list[str]) -> int:
    """Run one sub-command and return its exit code. Raises what it raises, and LiraError if it is unknown."""
    commands = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    if _COMPLETE in os.environ or arguments[:1] in (["--install-completion"], ["--show-completion"]):
        _all_commands(commands).main(arguments, prog_name=_PROGRAM)  # ends with SystemExit
    if not arguments or arguments[0] in ("--help", "-h"):
        _list_commands(commands)
    elif arguments[0] == "--version":
        print(f"{DISTRIBUTION} {metadata.version(DISTRIBUTION)}")
    elif arguments[0] not in commands:
        raise LiraError(f"there is no command {arguments[0]!r}; there are: {', '.join(sorted(commands))}")
    else:
        return _run(commands[arguments[0]], arguments[1:])
    sys.stdout.flush()
    return 0


def _run(entry: metadata.EntryPoint, arguments: list[str]) -> int:
    missing, mend = lacking(entry)
    if missing:
        raise LiraError(f"`lira-edge {entry.name}` needs {', '.join(missing)}: run {mend}")
    app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    app.command(entry.name)(entry.load())
    command, name = typer.main.get_command(app), f"lira-edge {entry.name}"
    try:
        # Not by its `main`, which handles Ctrl-C and closed pipes in its own way.
        with command.make_context(name, arguments) as context:
            command.invoke(context)
        code = 0
    except typer.Exit as end:
        code = end.exit_code
    except _UsageError as error:
        reason = " ".join(error.format_message().split())  # type: ignore[attr-defined]
        raise LiraError(f"{reason.rstrip('.')}: see `{name} --help`") from None
    sys.stdout.flush()
    return code


def _all_commands(commands: dict[str, metadata.EntryPoint]) -> Any:
    """Return one parser of all commands that can run, for a shell's completions. Imports all of them."""
    app = typer.Typer(context_settings={"help_option_names": ["-h", "--help"]})
    app.callback()(lambda: None)  # else a single command would not be a group
    for name, entry in sorted(commands.items()):
        if not lacking(entry)[0]:
            app.command(name)(entry.load())
    return typer.main.get_command(app)


def _list_commands(commands: dict[str, metadata.EntryPoint]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, entry in sorted(commands.items()):
        missing, mend = lacking(entry)
        note = f"  (not installed: {mend})" if missing else ""
        table.add_row(f"  {name}", _summary(entry) + note)
    console = plain_console()
    console.print("Usage: lira-edge COMMAND [ARGUMENTS]\n\nCommands (lira-edge COMMAND --help says more):")
    console.print(table)
    console.print("\nOptions: --version, --help, --install-completion, --show-completion")


def _summary(entry: metadata.EntryPoint) -> str:
    """Return the first line of a command's docstring from its source: importing it may fail."""
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
