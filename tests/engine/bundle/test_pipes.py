"""Pipes and devices in place of a bundle's files are refused; opening them would wait, or never end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lira_engine import Bundle, LiraError
from lira_engine.engines.record import BUILD_NAME, read_build

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes in folders")


@pytest.fixture(autouse=True)
def ends() -> Iterator[None]:
    """A wait ends the test run, instead of hanging it."""
    before = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "name", ["lira.json", "embeddings.npy", "tokenizer.json", "llm.onnx.data", "checks/sefe.npz"]
)
def test_a_pipe_is_refused(bundle_path: Path, name: str) -> None:
    (bundle_path / name).unlink()
    os.mkfifo(bundle_path / name)
    says = "it is a pipe or a device, expected a regular file" if name == "lira.json" else "is missing"
    with pytest.raises(LiraError, match=f"{says}.*copy the bundle again"):
        Bundle.open(bundle_path)


def test_a_device_is_refused(bundle_path: Path) -> None:
    (bundle_path / "lira.json").unlink()
    (bundle_path / "lira.json").symlink_to("/dev/zero")
    with pytest.raises(LiraError, match="it is a pipe or a device, expected a regular file"):
        Bundle.open(bundle_path)


def test_a_pipe_in_place_of_a_record_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / BUILD_NAME)
    with pytest.raises(LiraError, match=r"build\.json cannot be read \(it is a pipe .*; mend it"):
        read_build(tmp_path, "mend it")
    (tmp_path / BUILD_NAME).unlink()
    (tmp_path / BUILD_NAME).mkdir()
    with pytest.raises(LiraError, match=r"build\.json cannot be read \(.*Is a directory"):
        read_build(tmp_path, "mend it")
