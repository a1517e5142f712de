"""Processes that a command starts end when it is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

MAIN = "from lira_engine.main import main; main()"


def children(process: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def runs(process: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


def test_the_process_of_an_engine_ends_with_its_benchmark(trusted_nano: Path, tmp_path: Path) -> None:
    arguments = ["bench", str(trusted_nano), "--all", "--runs", "100000", "--threads", "1", "-o", "out"]
    with subprocess.Popen(
        [sys.executable, "-c", MAIN, *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as parent:
        deadline = time.monotonic() + 120
        measured: list[int] = []
        while not measured or not reads_its_work(measured[0]):
            assert parent.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
            measured = [one for one in children(parent.pid) if "engine_process" in command_of(one)]
        parent.send_signal(signal.SIGKILL)
    try:
        deadline = time.monotonic() + 60
        while runs(measured[0]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        if runs(measured[0]):
            os.kill(measured[0], signal.SIGKILL)


def command_of(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except FileNotFoundError:
        return ""


def reads_its_work(process: int) -> bool:
    """Return whether it has opened engines: their libraries are in its memory."""
    try:
        return "onnxruntime" in Path(f"/proc/{process}/maps").read_text()
    except FileNotFoundError:
        return False
