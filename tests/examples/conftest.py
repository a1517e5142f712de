"""The examples as their tools load them: a file by its path, beside a running server."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
KEY = "the-key-of-the-examples-tests"


@pytest.fixture(scope="session")
def sample() -> Path:
    """A picture with an orange star and a fish."""
    return ROOT / "assets" / "sample.png"


@pytest.fixture(scope="session")
def base_url(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where `lira-edge serve` answers with lira-nano: a process of its own, as for the tools.

    It wants the key that is in LIRA_API_KEY: an example that does not send it fails.
    """
    keys = tmp_path_factory.mktemp("served") / "keys"
    keys.write_text(f"{KEY}\n")
    keys.chmod(0o600)
    command = [sys.executable, "-c", "from lira_engine.main import main; main()", "serve", str(nano_bundle)]
    with (
        pytest.MonkeyPatch.context() as environment,
        subprocess.Popen(
            [*command, "--target", "portable", "--port", "0", "--api-key-file", str(keys)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        ) as server,
    ):
        environment.setenv("LIRA_API_KEY", KEY)
        assert server.stdout is not None
        try:
            address = re.search(r"http://\S+", server.stdout.readline())
            assert address is not None
            yield address[0]
        finally:
            server.terminate()


@pytest.fixture
def load_example(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Runs a file of examples/; `tool` are stand-ins for modules that it imports and this machine lacks."""

    def load(path: str, tool: dict[str, dict[str, Any]] | None = None) -> ModuleType:
        for name, contents in (tool or {}).items():
            stand_in = ModuleType(name)
            vars(stand_in).update(contents)
            monkeypatch.setitem(sys.modules, name, stand_in)
        spec = importlib.util.spec_from_file_location(path.replace("/", "_"), ROOT / "examples" / path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
