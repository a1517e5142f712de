"""If the system refuses memory or threads: one line, and nothing half-written."""

from __future__ import annotations

import errno
import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from lira_engine.errors import OutOfMemory
from lira_engine.main import main
from lira_export import export, memory
from lira_export.bundle_writer import BundleWriter


def refused(folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that `lira-edge export` prints on standard error."""
    with pytest.raises(SystemExit) as ended:
        main(["export", str(checkpoint), "-o", str(folder / "bundle")])
    line = capsys.readouterr().err
    assert ended.value.code == 2 and line.count("\n") == 1 and line.startswith("error: ")
    assert os.listdir(folder) == []
    return line


def test_too_little_memory_for_torch_is_one_line(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    granted = mmap.mmap

    def refuse(descriptor: int, length: int) -> mmap.mmap:
        if length >= memory.LEAST:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return granted(descriptor, length)

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert "out of memory (Cannot allocate memory): close other" in refused(tmp_path, tiny_checkpoint, capsys)


@pytest.mark.parametrize("granted", [0, 1, 3])
def test_too_few_threads_are_refused(monkeypatch: pytest.MonkeyPatch, granted: int) -> None:
    start, before = threading.Thread.start, threading.active_count()
    left = granted

    def refuse(thread: threading.Thread) -> None:
        nonlocal left
        if left == 0:
            raise RuntimeError("can't start new thread")
        left -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OutOfMemory, match=r"refused a thread .*: take fewer threads \(--threads 1"):
        memory.check_memory(3)
    assert threading.active_count() == before
    memory.check_memory(1)


@pytest.mark.parametrize(
    "said",
    [
        "[enforce fail at alloc_cpu.cpp:114] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
        "could not create a primitive",
    ],
)
def test_memory_that_ends_during_the_export_is_one_line(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: str,
) -> None:
    def refuse(writer: BundleWriter, *others: Any) -> None:
        (writer.folder / "sefe.onnx").write_text("half")
        try:
            raise RuntimeError(said)
        except RuntimeError as error:  # as torch's exporter does
            raise ValueError("Failed to export the model") from error

    monkeypatch.setattr(export, "write_stages", refuse)
    line = refused(tmp_path, tiny_checkpoint, capsys)
    assert line.startswith("error: out of memory (") and "Failed to export" not in line


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
@pytest.mark.parametrize("mebibytes", [555, 780])
def test_a_memory_limit_of_the_shell_is_one_line(
    tiny_checkpoint: Path, tmp_path: Path, mebibytes: int
) -> None:
    """Libraries end the process if they are loaded into less memory."""
    code = (
        "import resource; from lira_engine.main import main; "
        f"resource.setrlimit(resource.RLIMIT_AS, ({mebibytes << 20},) * 2); main()"
    )
    arguments = ["export", str(tiny_checkpoint), "-o", str(tmp_path / "bundle")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: out of memory (")
    assert done.stderr.count("\n") == 1 and os.listdir(tmp_path) == []
