"""Runs commands and ends them at given moments, and the inputs of those commands."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def _beside(name: str) -> Any:
    """Import a file beside this one: pytest does not put test folders on the path."""
    spec = importlib.util.spec_from_file_location(f"kills_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Hub = _beside("hub").Hub
Moment = tuple[str, float]
"""("write", N) or ("cpu", SECONDS): see zygote.py."""


class Zygote:
    """A process that has imported everything; a fork of it runs each command."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.log = folder / "log"
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "zygote.log").open("w"),
            text=True,
            env={
                **os.environ,
                "HOME": str(folder),
                "XDG_CACHE_HOME": str(folder / "cache"),
                "XDG_DATA_HOME": str(folder / "data"),
                "OMP_NUM_THREADS": "1",  # a fork loses the threads of the process
                "MPLBACKEND": "agg",
                **environment,
            },
        )
        assert self._answer() == {}

    def run(
        self, argv: Sequence[object], cwd: Path, at: Moment | None = None, plant: str | None = None
    ) -> dict[str, Any]:
        """Run a command in a fork and return how it ended; `plant`: a function of quick.py to call before."""
        asked = {"argv": [str(one) for one in argv], "cwd": str(cwd), "log": str(self.log)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({**asked, "at": at, "plant": plant}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def told(self) -> str:
        """Return what the last command printed."""
        return self.log.read_text(errors="replace")

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


@pytest.fixture(scope="session")
def kill_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes in every form that `lira-edge eval` and `calibrate` read."""
    from lira_nano.dataset import write_dataset

    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_dataset(folder, seed=4, count=4)
    return folder


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with three files: of a few bytes, of none, and of 3 MB."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "config.json").write_text("{}")
    (folder / "empty.txt").write_text("")
    (folder / "model.safetensors").write_bytes(random.Random(0).randbytes(3 << 20))
    with Hub(folder) as serving:
        yield serving


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> Iterator[Zygote]:
    environment = {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    started = Zygote(tmp_path_factory.mktemp("zygote"), environment)
    yield started
    started.close()
