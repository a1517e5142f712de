"""Nothing leaves the machine: what lira-nano's story does, as the system's calls and Python's events tell it.

strace sees the sockets and programs of native code too; Python's audit events see pickles and text that is
run as code.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from traced import addresses, lines, programs, strace_works, traced

from lira_bench.serving.server import serving
from lira_nano.dataset import write_dataset

ROOT = Path(__file__).parents[3]
SAMPLE = ROOT / "assets" / "sample.png"
OURS = tuple(
    str(ROOT / name) + os.sep for name in ("export", "calib", "engine", "runtime", "serve", "benchmarks")
)
LIRA = ("-c", "from lira_engine.main import main; main()")
NSCD = "connect AF_UNIX /var/run/nscd/socket"

pytestmark = pytest.mark.skipif(not strace_works(), reason="strace is not installed, or may not trace")


@dataclass
class Seen:
    """`started`: programs. `asked`: of the network. `events`: (event, what, file that did it) of Python."""

    started: list[str]
    asked: set[str]
    events: set[tuple[str, str, str]] = field(default_factory=set)


@dataclass
class Watch:
    """A folder for what is seen."""

    folder: Path
    count: int = 0

    def program(self, *words: str) -> tuple[str, ...]:
        """Return the words that start Python under watch."""
        self.count += 1
        (self.folder / f"{self.count}").mkdir()
        hooks = os.pathsep.join([str(Path(__file__).parent / "hooks"), *sys.path])
        told = {
            "PYTHONPATH": hooks,
            "LIRA_WATCHED": str(self.folder / f"{self.count}"),
            "LIRA_INSTALLED": str(ROOT),
        }
        variables = [f"{name}={value}" for name, value in told.items()]
        return ("env", *variables, *traced(self.folder / f"{self.count}.trace"), sys.executable, *words)

    def seen(self) -> Seen:
        """Return what the last program did."""
        trace = lines(self.folder / f"{self.count}.trace")
        rows = {
            tuple(json.loads(line))
            for file in (self.folder / f"{self.count}").iterdir()
            for line in file.read_text().splitlines()
        }
        assert len(list((self.folder / f"{self.count}").iterdir())) > 0, "Python did not watch"
        return Seen(programs(trace), addresses(trace), rows)

    def run(self, *words: str) -> Seen:
        done = subprocess.run(self.program(*words), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return self.seen()


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    folder = tmp_path_factory.mktemp("watched")
    watch, bundle, scenes = Watch(folder), str(folder / "bundle"), folder / "scenes"
    write_dataset(scenes, seed=3, count=1)
    commands = {
        "export": (str(ROOT / "checkpoints" / "lira-nano"), "-o", bundle),
        "build": (bundle,),
        "verify": (bundle,),
        "run": (bundle, "--image", str(SAMPLE), "--task", "gcg", "--overlay", str(folder / "overlay.png")),
        "eval": (
            bundle,
            "--data",
            str(scenes),
            "--task",
            "refseg",
            "--limit",
            "2",
            "-o",
            str(folder / "eval"),
        ),
        "bench": (bundle, "--task", "vqa", "--images", str(SAMPLE), "-o", str(folder / "bench")),
        "inspect": (bundle,),
        "doctor": (),
    }
    found = {name: watch.run(*LIRA, name, *words) for name, words in commands.items()}
    with serving([bundle], folder / "log", watch.program(*LIRA, "serve")) as server:
        picture = base64.b64encode(SAMPLE.read_bytes()).decode()
        body = {"image": f"data:image/png;base64,{picture}", "text": "the orange star"}
        answer = httpx.post(f"{server.url}/v1/segment", json=body, timeout=60, trust_env=False)
        assert answer.status_code == 200 and len(answer.json()["masks"]) == 1
    found["serve"] = watch.seen()
    return found


def of(seen: Seen, *names: str) -> set[tuple[str, str, str]]:
    return {event for event in seen.events if event[0].startswith(names)}


def without_ports(asked: Iterable[str]) -> set[str]:
    return {re.sub(r":\d+$", ":PORT", one) for one in asked}


@pytest.mark.parametrize(
    "command", ["export", "build", "verify", "run", "eval", "bench", "inspect", "doctor"]
)
def test_no_command_opens_a_socket(story: dict[str, Seen], command: str) -> None:
    # Where the user's home is, or his name, is asked of the system's user database, which may have a cache.
    assert story[command].asked <= {NSCD}
    assert of(story[command], "socket", "urllib") == set()


def test_the_server_opens_its_own_socket_alone(story: dict[str, Seen]) -> None:
    asked = without_ports(story["serve"].asked) - {NSCD}
    assert asked == {"socket AF_INET", "bind AF_INET 127.0.0.1:PORT"}
    assert {event for event, *_ in of(story["serve"], "socket", "urllib")} == {"socket.bind"}


def test_nothing_is_unpickled(story: dict[str, Seen]) -> None:
    assert {name: of(seen, "pickle") for name, seen in story.items() if of(seen, "pickle")} == {}


def test_the_programs_that_are_started_are_known(story: dict[str, Seen]) -> None:
    # torch, or ctypes for us, asks the linker where a library is.
    known = {"/sbin/ldconfig"}
    for name, seen in story.items():
        others = {one for one in seen.started if os.path.realpath(one) != os.path.realpath(sys.executable)}
        assert others <= known, name


def test_no_text_is_run_as_code_but_by_installed_libraries(story: dict[str, Seen]) -> None:
    for name, seen in story.items():
        ran = of(seen, "exec", "compile")
        assert {event for event in ran if event[1] != "text"} == set(), name  # a module from elsewhere
        assert {event for event in ran if event[2].startswith(OURS)} == set(), name


PLANTED = """
import pickle, runpy, socket, subprocess, urllib.request
from decimal import Decimal
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
    one.connect(("127.0.0.1", 53))
subprocess.run(["/bin/true"], check=True)
pickle.loads(pickle.dumps(Decimal))
exec("1 + 1")
runpy.run_path(__file__.replace("planted", "elsewhere"))
"""


def test_each_of_these_is_seen_where_it_happens(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text("1 + 1\n")
    (tmp_path / "planted.py").write_text(PLANTED)
    seen = Watch(tmp_path).run(str(tmp_path / "planted.py"))
    assert seen.started == ["/bin/true"]
    assert seen.asked == {"socket AF_INET", "connect AF_INET 127.0.0.1:53"}
    planted = str(tmp_path / "planted.py")
    assert of(seen, "pickle") == {("pickle.find_class", "('decimal', 'Decimal')", planted)}
    assert ("exec", "text", planted) in seen.events
    assert str(tmp_path / "elsewhere.py") in {what for event, what, _ in seen.events if event == "exec"}
    assert {event for event, *_ in seen.events} >= {"socket.connect", "subprocess.Popen"}
