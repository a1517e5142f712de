"""Importing a package loads no heavy library (pyproject.toml says which package may import which)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript")


@pytest.mark.parametrize("package", ["lira_engine", "lira_runtime", "lira_engine.main"])
def test_importing_loads_nothing_heavy(package: str) -> None:
    code = f"import json, sys, {package}; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_the_table_of_targets_loads_not_even_numpy() -> None:
    """The help of most commands names the targets."""
    code = "import sys, lira_engine.cli_options, lira_engine.cli; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("module", ["lira_engine.ort.session", "lira_engine.ort.llm"])
def test_a_missing_onnxruntime_is_an_error_of_one_line(module: str) -> None:
    code = (
        "import sys, importlib; sys.modules['onnxruntime'] = None\n"
        "from lira_engine import LiraError\n"
        f"try: importlib.import_module({module!r})\n"
        "except LiraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ONNX Runtime is not installed: pip install ")


def test_a_broken_onnxruntime_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libstdc++.so.6:\\nnot found')\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from lira_engine import LiraError\n"
        "try: import lira_engine.ort.package\n"
        "except LiraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(
        "ONNX Runtime cannot be loaded (libstdc++.so.6: not found): pip install 'lira-edge[cpu]', or"
    )
