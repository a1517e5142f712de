"""Ctrl-C at seeded imports of whole commands: exit code 130 and one line."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals as Linux and macOS do")

PICTURE = Path(__file__).parents[3] / "assets" / "sample.png"
MOMENTS = int(os.environ.get("LIRA_INTERRUPTS", "24"))
# Counts imports from the first one of ours on, and presses Ctrl-C at the N-th. With 0 it tells how many there
# are; for a server, until it opens its socket.
COUNTED = """
import os, sys
last, seen = int(sys.argv.pop(1)), [0]
def hook(event, found, last=last, seen=seen, kill=os.kill, here=os.getpid()):
    if event == "import":
        seen[0] += 1
        if seen[0] == last:
            kill(here, 2)
    elif event == "socket.bind" and not last:
        raise SystemExit
sys.addaudithook(hook)
try:
    from lira_engine.main import main
    main()
finally:
    if not last:
        print("imports", seen[0], file=sys.__stderr__)
"""
BEFORE = 7
"""Imports before Ctrl-C is handled: Python itself answers, and says so in several lines."""


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture(autouse=True)
def _not_ignored() -> Iterator[None]:
    """Enable Ctrl-C: background jobs of a script ignore it, and so do their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def run(last: int, arguments: list[object]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", COUNTED, str(last), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize("name", ["--help", "doctor", "run", "serve", "build"])
def test_ctrl_c_at_any_import_is_one_line(name: str, trusted_nano: Path) -> None:
    arguments = {
        "--help": ["--help"],
        "doctor": ["doctor"],
        "run": [
            "run",
            trusted_nano,
            "--image",
            PICTURE,
            "--task",
            "vqa",
            "--ask",
            "x",
            "--max-new-tokens",
            1,
        ],
        "serve": ["serve", trusted_nano, "--port", 0],
        "build": ["build", trusted_nano, "--dry-run", "--force"],
    }[name]
    for _ in range(2):  # the first run fills caches
        counted = run(0, arguments)
        assert "imports" in counted.stderr, counted.stderr
    count = int(counted.stderr.rsplit("imports ", 1)[1])
    assert count > 100
    chosen = random.Random(name).sample(range(BEFORE + 1, count + 1), MOMENTS // 5)
    for moment in [BEFORE + 1, *sorted(chosen)]:
        done = run(moment, arguments)
        assert (done.returncode, done.stderr) == (130, "interrupted\n"), (moment, done.stderr)


def test_nothing_else_is_imported_before_ctrl_c_is_handled() -> None:
    done = run(BEFORE, ["--version"])
    assert done.returncode == -signal.SIGINT and done.stderr.endswith("KeyboardInterrupt\n")
