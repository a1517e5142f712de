"""Ctrl-C while a command starts, runs, cleans up and ends."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals as Linux and macOS do")

PLAY = """
import sys
from importlib import metadata
from lira_engine import commands, main
entry = metadata.EntryPoint("play", "lira_plugin.cli:play", commands.GROUP)
metadata.entry_points = lambda group: metadata.EntryPoints([entry])
sys.argv[1:] = ["play"]
main.main()
"""
# wait() tells the test that now is the moment, then takes long.
WAIT = """
import sys, time
def wait(seconds=30):
    print("now", flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
"""
MOMENTS = {
    "in the command": """
        def play():
            wait()
        """,
    "with cleaning up to do": """
        def play():
            try:
                wait()
            finally:
                open("cleaned", "w").close()
        """,
    "when a library raises another error for it": """
        def play():
            try:
                wait()
            except KeyboardInterrupt:
                raise ImportError("numpy.core.multiarray failed to import") from None
        """,
    "in a destructor, which drops exceptions": """
        class Thing:
            def __del__(self):
                wait()
        def play():
            thing = Thing()
            del thing
            wait()
        """,
    "waiting for threads": """
        from concurrent.futures import ThreadPoolExecutor
        def play():
            with ThreadPoolExecutor() as pool:
                pool.submit(wait, 1)
        """,
    "beside another thread": """
        import threading
        def play():
            def other():
                while True:
                    time.sleep(0.01)
            threading.Thread(target=other, daemon=True).start()
            wait()
        """,
    "when the command has ended": """
        import atexit
        def play():
            atexit.register(wait)
        """,
    "while the interpreter waits for threads at exit": """
        import threading
        def play():
            threading.Thread(target=wait).start()
        """,
    "in a callback from C++": """
        class Mode:
            def __torch_function__(self):
                wait(0.3)
        def play():
            Mode().__torch_function__()
            wait()
        """,
}


@pytest.fixture(autouse=True)
def _not_ignored() -> Iterator[None]:
    """Enable Ctrl-C: background jobs of a script ignore it, and so do their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def beside(plugin: Path) -> dict[str, str]:
    paths = [str(plugin), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def interrupted(tmp_path: Path, source: str) -> tuple[int, str, str]:
    """Return exit code, output and errors of `lira-edge play`, interrupted as soon as it prints."""
    package = tmp_path / "lira_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "cli.py").write_text(WAIT + textwrap.dedent(source))
    with subprocess.Popen(
        [sys.executable, "-c", PLAY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=beside(tmp_path),
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        return process.returncode, out, err


@pytest.mark.parametrize("name", MOMENTS)
def test_ctrl_c_prints_one_line_and_exits_with_130(name: str, tmp_path: Path) -> None:
    code, _, err = interrupted(tmp_path, MOMENTS[name])
    assert (code, err) == (130, "interrupted\n")
    assert (tmp_path / "cleaned").exists() == ("cleaning" in name)


def test_ctrl_c_waits_for_an_import(tmp_path: Path) -> None:
    source = """
        wait(0.3)
        open("imported", "w").close()
        def play():
            time.sleep(30)
        """
    code, _, err = interrupted(tmp_path, source)
    assert (code, err) == (130, "interrupted\n") and (tmp_path / "imported").exists()


def test_a_process_that_ignores_ctrl_c_keeps_ignoring_it(tmp_path: Path) -> None:
    """As nohup and a script's background jobs do."""
    (tmp_path / "lira_plugin").mkdir()
    (tmp_path / "lira_plugin" / "__init__.py").write_text("")
    (tmp_path / "lira_plugin" / "cli.py").write_text(WAIT + "def play():\n    wait(0.3)\n")
    with subprocess.Popen(
        ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable, "-c", PLAY],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=beside(tmp_path),
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "") and process.returncode == 0


def test_ctrl_c_waits_for_a_child_process(tmp_path: Path) -> None:
    source = """
        import subprocess
        def play():
            code = "import time; print('now', flush=True); time.sleep(30)"
            subprocess.run([sys.executable, "-c", code])
        """
    code, out, err = interrupted(tmp_path, source)
    assert (code, out, err) == (130, "", "interrupted\n")


def test_ctrl_c_at_any_moment_of_inspect_prints_one_line(bundle_path: Path) -> None:
    """The moments begin shortly after the interpreter has started."""
    command = [sys.executable, "-c", "from lira_engine.main import main; main()", "inspect", str(bundle_path)]
    moments = random.Random(0)
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    longest = time.monotonic() - started
    for _ in range(8):
        moment = moments.uniform(0.2, 1.0) * longest
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            time.sleep(moment)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        assert (process.returncode, err) in ((130, b"interrupted\n"), (0, b"")), f"after {moment:.3f} s"
