"""The commands of docs/trust.md under "Signatures" do what the page says."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("model_signing", reason="the extra sign is not installed")
PAGE = (Path(__file__).parents[3] / "docs" / "trust.md").read_text(encoding="utf-8")


def test_the_commands_of_the_page(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed_by: Callable[..., str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    monkeypatch.chdir(tmp_path)
    bundle_path.rename(tmp_path / "BUNDLE")
    block = re.search(r"## Signatures.*?```\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    printed = []
    for line in block[1].splitlines():
        program, *words = shlex.split(line)
        if program == "lira-edge":
            printed.append(printed_by(*words))
            continue
        program = sys.executable if program == "python" else program
        done = subprocess.run([program, *words], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
    built, trusted, again = printed
    assert "--sign signing.key" in built
    for verified in (trusted, again):
        assert verified.count("as signed by") == 2 and re.search(r"[0-9a-f]{12} +trusted", verified)
