"""Run `python -m lira_bench.results`."""

from __future__ import annotations

import sys

import typer

from lira_bench.results.cli import results
from lira_engine.errors import LiraError
from lira_engine.system.text import error_line


def main() -> None:
    """Exit with 0, 2 for an error that the user can mend, or 130 after Ctrl-C."""
    app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    app.command()(results)
    try:
        typer.main.get_command(app).main(prog_name="python -m lira_bench.results")
    except LiraError as error:
        print(error_line(str(error)), file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
