"""What importing the packages loads (which may import which is in pyproject.toml, for import-linter)."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript")


@pytest.mark.parametrize("package", ["lira_engine", "lira_runtime", "lira_engine.main"])
def test_importing_loads_nothing_heavy(package: str) -> None:
    code = f"import json, sys, {package}; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
