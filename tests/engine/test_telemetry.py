"""Libraries that report to their makers are told not to before they are opened, wherever we open them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lira_engine.telemetry import OFF

ROOT = Path(__file__).parents[2]
FOLDERS = ("export", "calib", "engine", "runtime", "serve", "benchmarks")
REPORTING = {
    "onnxruntime",
    "onnxruntime_genai",
    "huggingface_hub",
    "ray",
    "optimum",
    "transformers",
    "modelopt",
}

# Looks at the variables when a library is searched for, and finds none: nothing is opened.
PROGRAM = """
import importlib, os, sys
off, reporting = eval(sys.argv[2]), eval(sys.argv[3])

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in reporting:
            print("searched", all(os.environ[one] == value for one, value in off.items()))
            raise ImportError(name)

sys.meta_path.insert(0, Watch())
try:
    importlib.import_module(sys.argv[1])
except Exception as error:
    print(type(error).__name__)
print("off", all(os.environ[one] == value for one, value in off.items()))
"""


def opening() -> list[str]:
    """The modules of ours that open one of the libraries, by name or by a string of its name."""
    found = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).glob("lira_*/**/*.py")):
            names: set[str] = set()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names |= {one.name for one in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names.add(node.module or "")
                elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
                    names |= {one.value for one in node.args if isinstance(one, ast.Constant)}
            if REPORTING & {name.partition(".")[0] for name in names}:
                found.append(".".join(path.relative_to(ROOT / folder).with_suffix("").parts))
    return found


def told(module: str) -> list[str]:
    environment = os.environ | dict.fromkeys(OFF, "wanted")  # what the user says does not count
    command = [sys.executable, "-c", PROGRAM, module, repr(OFF), repr(REPORTING)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return done.stdout.splitlines()


def test_the_variables_are_those_that_the_libraries_read() -> None:
    assert OFF == {
        "ORT_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def test_the_modules_that_open_them_are_known() -> None:
    assert {
        "lira_engine.ort.package", "lira_engine.system.extras", "lira_export.hub",
        "lira_bench.peers.optimum", "lira_bench.accuracy.ray_workers", "lira_serve.on_ray.cluster",
        "lira_calib.methods.modelopt",
    } <= set(opening())  # fmt: skip


@pytest.mark.parametrize("module", opening())
def test_telemetry_is_off_before_a_library_is_opened(module: str) -> None:
    lines = told(module)
    assert lines[-1] == "off True"
    assert "searched False" not in lines


def test_a_library_that_is_opened_first_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "careless.py").write_text("import onnxruntime\nimport lira_engine\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert told("careless") == ["searched False", "ImportError", "off False"]
