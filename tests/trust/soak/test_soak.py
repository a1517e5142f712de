"""The soak's short form: 100 questions through the API and the server, and what it says of planted leaks.

Growth per question, measured: what the leak of arrays keeps is 0.75 MiB, and over the 40 questions between
the middle fifth and the last one 30 MiB (API) and 34 MiB (server). Without it they grew by 2 and 6 MiB: heaps
that find their size. The limit lies between. 2,000 questions (`make soak`) tell more.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from traced import addresses, lines, strace_works, traced

from lira_engine.build import build
from soak.__main__ import GREW
from soak.leaks import LEAKS
from soak.visits import WRONG

QUESTIONS, MIB = 100, 15
SECONDS = 60  # ONNX Runtime's first look-up came 9 s after the import
PATIENCE = 600

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def bundle(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(nano_bundle, tmp_path_factory.mktemp("nano") / "bundle")
    build(folder, target="cpu")
    return folder


def start(*words: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [*before, sys.executable, "-m", "soak", *words, "--mib", str(MIB)]
    found = os.pathsep.join(sys.path)
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": found},
    )


def ended(process: subprocess.Popen[str], code: int) -> dict[str, Any]:
    try:
        output, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == code, (output, errors)
    found: dict[str, Any] = json.loads(output)
    return found


@pytest.fixture(scope="module", autouse=True)
def long_lived(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """The soak through the API, asking on for a minute, while the other tests run."""
    trace = tmp_path_factory.mktemp("trace") / "trace"
    before = traced(trace) if strace_works() else ()
    process = start("api", str(bundle), "--count", str(QUESTIONS), "--seconds", str(SECONDS), before=before)
    yield process, trace
    process.kill()


@pytest.mark.parametrize("way", ["api", "server"])
def test_planted_leaks_are_found(bundle: Path, way: str) -> None:
    found = ended(start(way, str(bundle), "--count", str(QUESTIONS), "--leak", *LEAKS), GREW)
    assert [one.split()[0] for one in found["failed"]] == ["mib", "files", "threads"], found


def test_the_server_does_not_grow(bundle: Path) -> None:
    whole(ended(start("server", str(bundle), "--count", str(QUESTIONS)), 0))


def whole(found: dict[str, Any]) -> None:
    counts = found["counts"]
    assert sum(counts.values()) >= QUESTIONS and found["probes"] == 3
    assert counts["answered"] > QUESTIONS // 2 and counts["left"] > QUESTIONS // 20
    assert len(counts.keys() & set(WRONG)) > 4


@pytest.fixture(scope="module")
def lived(long_lived: tuple[subprocess.Popen[str], Path]) -> dict[str, Any]:
    return ended(long_lived[0], 0)


def test_the_api_does_not_grow(lived: dict[str, Any]) -> None:
    whole(lived)


@pytest.mark.skipif(not strace_works(), reason="strace is not installed, or may not trace")
def test_a_minute_of_answers_asks_nothing_of_the_network(
    lived: dict[str, Any], long_lived: tuple[subprocess.Popen[str], Path]
) -> None:
    assert lived["seconds"] >= SECONDS
    assert addresses(lines(long_lived[1])) == set()


LOOK_UP = """
import socket, threading
def ask():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"a question of the test", ("127.0.0.1", 53))
thread = threading.Timer(0.1, ask)
thread.start()
thread.join()
"""


@pytest.mark.skipif(not strace_works(), reason="strace is not installed, or may not trace")
def test_a_look_up_of_a_thread_is_seen(tmp_path: Path) -> None:
    subprocess.run([*traced(tmp_path / "trace"), sys.executable, "-c", LOOK_UP], check=True)
    assert addresses(lines(tmp_path / "trace")) == {"socket AF_INET", "sendto AF_INET 127.0.0.1:53"}
