"""Damaged bundles, with hashes that fit, end in success or in one line, whatever is damaged in them.

`many.py` runs more of them by hand.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lira_engine.build import build

MANY = Path(__file__).with_name("many.py")
COUNT = 40


@pytest.mark.portable
@pytest.mark.skipif(sys.platform != "linux", reason="limits of a process, and fork")
def test_damaged_bundles_are_refused_in_one_line(nano_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(nano_bundle, tmp_path / "nano", ignore=shutil.ignore_patterns("engines"))
    build(bundle)
    command = [sys.executable, MANY, bundle, tmp_path / "work", "0", str(COUNT), "-v"]
    done = subprocess.run([str(one) for one in command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{COUNT} damaged, 0 wrong\n"


@pytest.mark.parametrize(
    ("code", "stderr", "expected"),
    [
        (0, "", ""),
        (0, "warning: slow\n", ""),
        (2, "error: it is damaged; copy it again\n", ""),
        (1, "Traceback (most recent call last):\n", "code 1"),
        (-11, "", "code -11"),
        (2, "a library's line\nerror: it is damaged\n", "2 lines"),
        (2, "", "0 lines"),
        (0, "2026-01-01 [E:onnxruntime] odd\n", "lines of a library"),
    ],
)
def test_the_check_itself_sees_what_is_wrong(
    code: int, stderr: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(MANY.parent))
    spec = importlib.util.spec_from_file_location("many", MANY)
    assert spec is not None and spec.loader is not None
    many = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(many)
    assert many.wrong({"code": code, "stderr": stderr, "seconds": 0.1, "mib": 200}) == expected
    assert many.wrong({"code": 0, "stderr": "", "seconds": 11.0, "mib": 200}) == "slow"
    assert many.wrong({"code": 0, "stderr": "", "seconds": 1.0, "mib": 2000}) == "much memory"
