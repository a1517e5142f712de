"""Commands run with closed standard streams, as some services and cron jobs start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="closes descriptors")

PLAN = ("plan", "lira-nano", "--device", "orin-nano")
COMMAND = "import sys; from lira_engine.main import main; main()"


@pytest.mark.parametrize("closed", [(1,), (2,), (0,), (0, 1, 2)])
@pytest.mark.parametrize("arguments", [PLAN, ("plan", "--help"), ()])
def test_a_command_with_closed_streams_succeeds_silently(
    closed: tuple[int, ...], arguments: tuple[str, ...], tmp_path: Path
) -> None:
    report = tmp_path / "plan.json"
    options = ("--json", str(report)) if "lira-nano" in arguments else ()
    shell = " ".join(f"{descriptor}>&-" for descriptor in closed)
    done = subprocess.run(
        ["sh", "-c", f'"$@" {shell}', "sh", sys.executable, "-c", COMMAND, *arguments, *options],
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert bool(done.stdout) != (1 in closed)
    assert not options or report.read_bytes().startswith(b"{")


def test_an_error_without_stderr_keeps_its_exit_code(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" 2>&-', "sh", sys.executable, "-c", COMMAND, "inspect", str(tmp_path / "nowhere")],
        stdout=subprocess.PIPE,
    )
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_new_file_does_not_get_the_closed_outputs_descriptor(tmp_path: Path) -> None:
    """A library's output must not land in the next file that is opened."""
    written = tmp_path / "file"
    code = f"""
import os
from lira_engine.main import _prepare_process
_prepare_process()
with open({str(written)!r}, "wb") as file:
    os.write(1, b"a library's line")
    file.write(b"content")
"""
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", sys.executable, "-c", code], stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert written.read_bytes() == b"content"
