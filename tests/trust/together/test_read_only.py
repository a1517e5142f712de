"""A bundle that nobody can write, and one that is moved after its build: both run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lira_engine.build import build

SAMPLE = Path(__file__).parents[3] / "assets" / "sample.png"
LIRA_EDGE = [sys.executable, "-c", "from lira_engine.main import main; main()"]
# In a mount namespace of its own: the superuser may write whatever modes say.
READ_ONLY = ["unshare", "--mount", "--map-root-user", "sh", "-ec"]
MOUNT = 'mount --bind "$1" "$1"; mount -o remount,ro,bind "$1"; shift; exec "$@"'


@pytest.fixture(scope="module")
def moved(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lira-nano with engines that were built while it had another name."""
    folder = tmp_path_factory.mktemp("built")
    copy = shutil.copytree(nano_bundle, folder / "before", ignore=shutil.ignore_patterns("engines"))
    build(copy, "cpu", threads=1)
    return copy.rename(folder / "after")


def read_only(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*READ_ONLY, MOUNT, "sh", str(bundle), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_read_only_bundle(moved: Path) -> None:
    if shutil.which("unshare") is None or read_only(moved, "true").returncode != 0:
        pytest.skip("no mount namespaces here")
    asked = ("--image", str(SAMPLE), "--ask", "What is this?", "--threads", "1", "--max-new-tokens", "3")
    for command in (("run", str(moved), *asked), ("inspect", str(moved)), ("build", str(moved))):
        done = read_only(moved, *LIRA_EDGE, *command)
        assert (done.returncode, done.stderr) == (0, ""), command
    done = read_only(moved, *LIRA_EDGE, "build", str(moved), "--force", "--threads", "1")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {moved}") and "Read-only file system; make its disk writable" in line
