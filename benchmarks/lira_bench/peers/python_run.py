"""Run a Python module of a peer's package as a program, with this interpreter."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from lira_engine.errors import LiraError


def run_module(name: str, *arguments: str | Path) -> None:
    """Run `python -m NAME` with its output on our error stream. Raises LiraError if it fails."""
    command = [sys.executable, "-m", name, *map(str, arguments)]
    code = subprocess.run(
        command, stdout=sys.stderr.fileno(), stdin=subprocess.DEVNULL, check=False
    ).returncode
    if code:
        raise LiraError(f"python -m {name} ended with {code}")
