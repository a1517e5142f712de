"""Importing the runtime loads no heavy package."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["torch", "transformers", "onnx", "matplotlib", "lira_export"])
def test_the_runtime_does_not_load(module: str) -> None:
    code = (
        "import sys, lira_runtime, lira_runtime.cli, lira_runtime.report\n"
        "lira_runtime.Lira, lira_runtime.Answer\n"
        f"sys.exit({module!r} in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, lira_runtime\nsys.exit('numpy' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
