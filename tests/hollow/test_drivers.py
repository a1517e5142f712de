"""The two drivers of lira_engine.cuda by the real pycuda and cuda.bindings, on a hollow libcuda: every name
that they use is there, every call takes the arguments that it is given, and a process ends without a word."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

MODULES = {
    "pycuda": ("lira_engine.cuda.by_pycuda", "pycuda.driver"),
    "cuda-bindings": ("lira_engine.cuda.by_bindings", "cuda.bindings.driver"),
}
ROUND_TRIP = """
import json, sys, threading
import numpy as np
from lira_engine.cuda.opening import open_driver
from lira_engine.errors import LiraError

driver = open_driver(sys.argv[1])
found = {"name": driver.name, "device": driver.device}
with driver.current():
    one, other = driver.allocate(4096), driver.allocate(4096)
    stream, second = driver.stream(), driver.stream()
    assert one.size == 4096 and one.address != other.address and stream.handle != second.handle
    out, event = driver.pinned((2, 512), np.float32), driver.event()
    out[:] = 0
    driver.copy_in(one, np.arange(1024, dtype=np.float32), stream)
    event.record(stream)
    second.wait(event)
    driver.copy(other, one, 4096, second)
    driver.copy_out(out, other, second)
    second.synchronize()
    event.synchronize()
    assert (out.ravel() == np.arange(1024)).all()
    driver.zero(other, stream)
    driver.copy_out(out, other, stream)
    stream.synchronize()
    assert not out.any()
    try:
        driver.allocate(1 << 50)
    except LiraError as error:
        found["full"] = str(error)
    kept = [driver.pinned((3,), np.int64), driver.event(), driver.stream(), driver.allocate(512)]
    del event, second, other
    one.free()
thread = threading.Thread(target=kept.clear)
thread.start()
thread.join()
with driver.current():
    pass
print(json.dumps(found))
"""


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=120)


@pytest.fixture(params=MODULES)
def package(request: pytest.FixtureRequest) -> str:
    """A package of CUDA's calls that is installed here."""
    name: str = request.param
    try:
        importlib.import_module(MODULES[name][1])
    except ImportError as error:
        pytest.skip(f"{name} is not here: {error}")
    return name


def names_of_cuda(source: str) -> Iterator[tuple[str, ...]]:
    """What the code takes from its module `cuda`, such as ("CUresult", "CUDA_SUCCESS")."""
    for node in ast.walk(ast.parse(source)):
        chain: list[str] = []
        while isinstance(node, ast.Attribute):
            chain.insert(0, node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            continue
        if node.id == "self" and chain[:1] == ["_cuda"]:
            del chain[0]
        elif node.id != "cuda":
            continue
        if chain:
            yield tuple(chain)


def used(package: str) -> set[tuple[str, ...]]:
    ours = importlib.import_module(MODULES[package][0])
    return set(names_of_cuda(inspect.getsource(ours)))


def test_every_name_is_in_the_package(package: str) -> None:
    real: Any = importlib.import_module(MODULES[package][1])
    names = used(package)
    assert len(names) > 8
    missing = []
    for name in names:
        try:
            reduce(getattr, name, real)
        except AttributeError:
            missing.append(".".join(name))
    assert not missing


def test_names_of_cuda_are_found() -> None:
    source = "cuda.Event(self._cuda.event_flags.DISABLE)\nself._cuda.mem_alloc(1)\nother.name\nself.cuda.x"
    found = set(names_of_cuda(source))
    assert found == {("Event",), ("event_flags", "DISABLE"), ("event_flags",), ("mem_alloc",)}


@pytest.fixture
def round_trip(package: str, tmp_path: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The package, what the script found, and what it asked CUDA for. It ended without a word."""
    done = run(ROUND_TRIP, package, HOLLOW_LOG=str(tmp_path / "log.json"), HOLLOW_MEMORY_MIB="2048")
    assert (done.returncode, done.stderr) == (0, "")
    return package, json.loads(done.stdout), json.loads((tmp_path / "log.json").read_text())


def test_a_round_trip(round_trip: tuple[str, dict[str, Any], dict[str, Any]]) -> None:
    package, found, log = round_trip
    assert found["name"].startswith(package) and found["device"] == "Hollow H100 sm_90"
    assert found["full"].startswith("Hollow H100 sm_90 has 2,04") and "of 2,048 MiB free" in found["full"]
    places = {(one["from"], one["to"]) for one in log["copies"]}
    assert places == {("host", "device"), ("device", "device"), ("device", "pinned")}


def test_everything_that_was_dropped_is_freed(round_trip: tuple[str, dict[str, Any], dict[str, Any]]) -> None:
    """Also what another thread dropped: page-locked memory, an event, a stream, a buffer."""
    calls = round_trip[2]["calls"]
    assert calls["cuEventCreate"] == 2 and calls["cuStreamCreate"] == 3
    assert calls["cuEventDestroy_v2"] == 2 and calls["cuStreamDestroy_v2"] >= 2
    assert calls["cuMemFreeHost"] >= 1 and calls["cuMemFree_v2"] == 3
    assert round_trip[2]["memory"]["now"] == 0


def test_every_call_is_made(round_trip: tuple[str, dict[str, Any], dict[str, Any]]) -> None:
    """So the real package takes its arguments. Of pycuda, which has names of its own, by their number."""
    package, _, log = round_trip
    made = {name.partition("_v")[0] for name in log["calls"]}
    functions = {name[0] for name in used("cuda-bindings") if re.match("cu[A-Z]", name[0])}
    assert len(functions) > 20
    if package == "pycuda":  # asks for both figures at once, and releases its context
        functions = functions - {"cuDeviceGetAttribute"} | {"cuDeviceComputeCapability"}
        functions |= {"cuDevicePrimaryCtxRelease"}
    assert functions <= made


WITHOUT_GPU = """
import sys
from lira_engine.cuda.opening import open_driver
from lira_engine.errors import LiraError

try:
    open_driver(sys.argv[1])
except LiraError as error:
    print(error)
"""


def test_a_machine_without_a_gpu_is_told_in_a_line(package: str) -> None:
    done = run(WITHOUT_GPU, package, HOLLOW_ERROR="100")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("CUDA finds no GPU to work with (") and done.stdout.count("\n") == 1
