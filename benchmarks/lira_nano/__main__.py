"""Run `python -m lira_nano scenes | train | evaluate`; each command imports only its own module."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import typer

from lira_engine.errors import LiraError
from lira_engine.system.text import error_line

# Each module has a function `command`, whose typed parameters are the options (typer).
COMMANDS = {
    "scenes": ("lira_nano.dataset", "write scenes with masks, expressions, captions and questions"),
    "train": ("lira_nano.train", "train lira-nano from nothing"),
    "evaluate": ("lira_nano.evaluate", "measure a bundle on scenes that training never saw"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with 0, 2 for an error that the user can mend, or 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("python -m lira_nano COMMAND [OPTIONS]\n")
        print("\n".join(f"  {name:10}{summary}" for name, (_, summary) in COMMANDS.items()))
        raise SystemExit(0)
    name, *rest = arguments
    try:
        _run(name, rest)
    except LiraError as error:
        print(error_line(str(error)), file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _run(name: str, arguments: list[str]) -> None:
    if name not in COMMANDS:
        raise LiraError(f"there is no command {name!r}; there are: {', '.join(COMMANDS)}")
    try:
        module = importlib.import_module(COMMANDS[name][0])
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("lira_"):
            raise
        raise LiraError(
            f"`{name}` needs {error.name}: run pip install 'lira-edge[export,cpu,nano]'"
        ) from None
    app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    app.command(name)(module.command)
    typer.main.get_command(app).main(arguments, prog_name=f"python -m lira_nano {name}")


if __name__ == "__main__":
    main()
