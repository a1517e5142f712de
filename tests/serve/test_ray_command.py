"""`lira-edge serve --ray` as a process: its one line, its ports, its end."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from lira_engine.errors import LiraError
from lira_serve import cli

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")


@needs_ray
def test_the_command_serves_this_machine_alone_and_leaves_nothing(nano: Path, serve: SimpleNamespace) -> None:
    """From its one line to its end by SIGTERM."""
    with serve.process(nano, "--ray", "--replicas", "2", "--threads", "1") as served:
        processes = family(served.worker.pid)
        assert served.chat("the orange star", lira={"task": "refseg"})["choices"][0]["message"]["lira"][
            "masks"
        ]
        with served.client() as client:
            assert client.get("/health/ready").status_code == 200
        open_to_all = {processes[pid] for pid, host in listeners(processes) if not loopback(host)}
        # A port of each replica, at which Ray Serve refuses calls without the cluster's token.
        assert all(name.startswith("ray::ServeReplica") for name in open_to_all), open_to_all
    assert served.worker.returncode == 0
    deadline = time.monotonic() + serve.wait
    while left := [pid for pid in processes if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, [processes[pid] for pid in left]
        time.sleep(0.05)
    assert [json.loads(line)["status"] for line in served.log.getvalue().splitlines()] == [200, 200]


def family(parent: int) -> dict[int, str]:
    """A process and its descendants, by their ids: their command lines."""
    found = {}
    waiting = [parent]
    while waiting:
        pid = waiting.pop()
        found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        for task in Path(f"/proc/{pid}/task").iterdir():
            waiting += map(int, (task / "children").read_text().split())
    return found


def listeners(pids: Iterable[int]) -> Iterator[tuple[int, str]]:
    """The processes that listen to TCP, with the address as the kernel writes it."""
    listening = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                listening[f"socket:[{fields[9]}]"] = fields[1].partition(":")[0]
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                if (name := os.readlink(file)) in listening:
                    yield pid, listening[name]


def loopback(address: str) -> bool:
    """Whether an address of the kernel's tables is 127.0.0.1, ::ffff:127.0.0.1 or ::1."""
    return address.endswith("0100007F") or address == "0" * 24 + "01000000"


def test_replicas_without_ray_are_refused(nano: Path) -> None:
    with pytest.raises(LiraError, match="--replicas 2 is given without --ray"):
        cli.serve(nano, replicas=2, on_ray=False)
