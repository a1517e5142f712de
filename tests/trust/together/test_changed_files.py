"""Files that change under an open bundle: the right answer or one line, never a crash or a wrong answer.

In a process of its own: where a check is missing, a mapped file that was cut ends the process (SIGBUS).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytestmark = pytest.mark.portable
ROOT = Path(__file__).parents[3]
ASK = """
    import os, sys
    from pathlib import Path
    from lira_engine import BundleChanged
    from lira_engine.bundle import bundle as bundle_module
    from lira_runtime import Lira

    bundle, picture = Path(sys.argv[1]), sys.argv[2]
    bundle_module.READ_AT_ONCE = 1024  # the table is mapped, as a true model's is

    def in_place(path, content):
        before = path.stat()
        with open(path, "r+b") as file:
            file.write(content)
            file.truncate(len(content))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
"""
BETWEEN = """
    lira = Lira.open(bundle, "portable", threads=1)
    scene = lira.look(picture)

    def ask():
        return scene.ask("What is this?", max_new_tokens=4).token_ids

    def refused(what):
        try:
            what()
        except BundleChanged as error:
            return str(error)
        raise AssertionError("it answered")

    right = ask()
    for name in sys.argv[3:]:
        file = bundle / name
        content = file.read_bytes()
        for change in (b"", content[: len(content) // 2], content[:-64] + bytes(64)):
            in_place(file, change)
            for what in (ask, lambda: lira.look(picture)):
                assert f"{name} was changed in place" in refused(what)
            in_place(file, content)
            assert ask() == right
        new = file.with_name("new")
        new.write_bytes(content[: len(content) // 2])
        new.replace(file)
        assert ask() == right
    bundle.rename(bundle.with_name("moved"))
    assert ask() == right
    moved = bundle.with_name("moved")
    for path in sorted(moved.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert ask() == right
    print("all as it should be")
"""
DURING_RUN = """
    from lira_engine.main import main
    look = Lira.look

    def looked(self, *args, **options):
        scene = look(self, *args, **options)
        file = bundle / "llm.onnx.data"
        in_place(file, file.read_bytes()[:4096])
        return scene

    Lira.look = looked
    main(["run", str(bundle), "--image", picture, "--ask", "What is this?", "--target", "portable"])
"""


def child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", textwrap.dedent(ASK) + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def bundle(nano_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(nano_bundle, tmp_path / "nano", ignore=shutil.ignore_patterns("engines"))


def test_between_two_answers(bundle: Path) -> None:
    names = ("embeddings.npy", "llm.onnx.data", "semantic_encoder.onnx.data", "pixel_decoder.onnx.data")
    done = child(BETWEEN, bundle, ROOT / "assets" / "sample.png", *names)
    assert (done.returncode, done.stdout) == (0, "all as it should be\n"), done.stderr


def test_during_a_run(bundle: Path) -> None:
    done = child(DURING_RUN, bundle, ROOT / "assets" / "sample.png")
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {bundle}/llm.onnx.data was changed in place while the bundle was open")
