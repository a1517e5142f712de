"""Run `python -m lira_bench.serving`."""

from __future__ import annotations

import sys

import typer

from lira_engine.errors import LiraError
from lira_engine.system.text import error_line


def main() -> None:
    """Exit with 0, 1 if a check failed, 2 for an error that the user can mend, or 130 after Ctrl-C."""
    try:
        from lira_bench.serving.cli import serving
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("lira_"):
            raise
        needed = f"it needs {error.name}: run pip install 'lira-edge[cpu,serve]'"
        print(error_line(needed), file=sys.stderr)
        raise SystemExit(2) from None
    app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    app.command()(serving)
    try:
        typer.main.get_command(app).main(prog_name="python -m lira_bench.serving")
    except LiraError as error:
        print(error_line(str(error)), file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
