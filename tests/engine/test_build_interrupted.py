"""A killed build leaves nothing usable, and concurrent builds do not disturb each other."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lira_engine import Bundle, LiraError
from lira_engine.build import build
from lira_engine.engines.usable import usable_build
from lira_engine.targets import target_named

SLOW = """
    import sys
    from lira_engine.build import build

    def progress(stage, phase):
        if (stage, phase) == ("pixel_decoder", "check"):  # every file is written
            print("ready", flush=True)
            sys.stdin.readline()

    build(sys.argv[1], threads=1, progress=progress)
"""


@contextmanager
def building(bundle: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a build that has written its engines and waits for a line before it checks the last one."""
    command = [sys.executable, "-c", textwrap.dedent(SLOW), str(bundle)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process


def test_a_killed_build_leaves_no_usable_engines(bundle_path: Path) -> None:
    with building(bundle_path) as process:
        process.kill()
    (left,) = os.listdir(bundle_path / "engines")
    assert left.startswith(".cpu-fp32.partial-") and len(os.listdir(bundle_path / "engines" / left)) >= 5
    with pytest.raises(LiraError, match="holds no engines"):
        usable_build(Bundle.open(bundle_path), target_named("cpu"), "fp32")
    build(bundle_path, "cpu", "int8", threads=1)  # any build removes the files of a dead one
    assert os.listdir(bundle_path / "engines") == ["cpu-int8"]


def test_concurrent_builds_keep_each_others_files(bundle_path: Path) -> None:
    with building(bundle_path) as process:
        for precision in ("fp32", "int8"):
            build(bundle_path, "cpu", precision, threads=1)
        assert len(os.listdir(bundle_path / "engines")) == 3  # the slow build's files are still there
        process.communicate("go on\n")
    assert process.returncode == 0
    assert sorted(os.listdir(bundle_path / "engines")) == ["cpu-fp32", "cpu-int8"]
    for precision in ("fp32", "int8"):
        usable_build(Bundle.open(bundle_path), target_named("cpu"), precision)
