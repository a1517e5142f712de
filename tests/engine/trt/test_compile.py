"""The compiler's process: what it keeps between builds, what stops it, and when it exits. With stand-ins for
TensorRT's builder (the real one: test_real_compiler.py)."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lira_engine import LiraError
from lira_engine.trt import build as trt_build
from lira_engine.trt import compile as trt_compile
from lira_engine.trt.compile import Job, compile_engine
from lira_engine.trt.flavour import Flavour

fcntl = pytest.importorskip("fcntl", reason="Windows has no such locks")
GOOD = b"timings of this device"


class Config:
    """An `IBuilderConfig` that takes timing caches of this device, and empty ones."""

    def __init__(self, refuses: bool = False) -> None:
        self.refuses, self.used = refuses, None
        self.limits: dict[str, int] = {}
        self.network_flags: int | None = None

    def set_memory_pool_limit(self, pool: str, pool_size: int) -> None:
        self.limits[pool] = pool_size

    def create_timing_cache(self, kept: bytes) -> Any:
        if kept == b"damaged":
            return None
        return SimpleNamespace(content=kept, serialize=lambda: GOOD)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if self.refuses or ignore_mismatch or cache.content not in (b"", GOOD):
            return False
        self.used = cache
        return True


def fake(config: Config) -> ModuleType:
    """Return a TensorRT whose engines are b"plan"."""
    module = ModuleType("fake")
    network = SimpleNamespace(num_layers=3)

    def create_network(flags: int) -> SimpleNamespace:
        config.network_flags = flags
        return network

    builder = SimpleNamespace(
        create_network=create_network,
        create_builder_config=lambda: config,
        build_serialized_network=lambda network, config: b"plan",
    )
    logger = type("ILogger", (), {"ERROR": 1, "INTERNAL_ERROR": 0})
    vars(module).update(
        ILogger=logger,
        Builder=lambda log: builder,
        OnnxParser=lambda network, log: SimpleNamespace(parse_from_file=lambda path: True),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1),
    )
    return module


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Config:
    made = Config()
    flavour = Flavour("tensorrt", fake(made), (10, 3), "decomposed")
    monkeypatch.setattr(trt_compile, "load_flavour", lambda target: flavour)
    return made


def job(folder: Path, **changes: Any) -> Job:
    graph, out, timings = (
        str(folder / name) for name in ("llm.onnx", "llm.engine", "cache/lira-edge/timings")
    )
    return replace(Job("tensorrt", graph, out, [], [], timings), **changes)


@pytest.mark.parametrize("kept, used", [(None, b""), (GOOD, GOOD), (b"damaged", b""), (b"other device", b"")])
def test_timings_are_kept_and_bad_ones_replaced(
    config: Config, tmp_path: Path, kept: bytes | None, used: bytes
) -> None:
    file = tmp_path / "cache" / "lira-edge" / "timings"
    if kept is not None:
        file.parent.mkdir(parents=True)
        file.write_bytes(kept)
    assert compile_engine(job(tmp_path), lambda phase: None)["layers"] == 3
    assert config.used is not None and config.used.content == used
    assert file.read_bytes() == GOOD and (tmp_path / "llm.engine").read_bytes() == b"plan"


@pytest.mark.parametrize("place", ["", "file"])
def test_a_build_works_if_timings_cannot_be_read_or_kept(config: Config, tmp_path: Path, place: str) -> None:
    """A folder where the file should be, or a file where its folder should be."""
    folder = tmp_path / "cache" / "lira-edge"
    (folder / "folder").mkdir(parents=True)
    (folder / "file").write_text("")
    compile_engine(job(tmp_path, timing_cache=str(folder / place / "timings")), lambda phase: None)
    compile_engine(job(tmp_path, timing_cache=str(folder / "folder")), lambda phase: None)
    assert (tmp_path / "llm.engine").read_bytes() == b"plan"


def test_a_build_works_if_all_timings_are_refused(config: Config, tmp_path: Path) -> None:
    config.refuses = True
    compile_engine(job(tmp_path), lambda phase: None)
    assert not (tmp_path / "cache").exists() and (tmp_path / "llm.engine").exists()


def test_the_workspace_is_limited_if_the_job_says_so(config: Config, tmp_path: Path) -> None:
    compile_engine(job(tmp_path), lambda phase: None)
    assert config.limits == {}
    compile_engine(job(tmp_path, workspace=5), lambda phase: None)
    assert config.limits == {"workspace": 5}


@pytest.mark.parametrize(
    "target, version, flags",
    [
        ("tensorrt", (10, 3), 2),
        ("tensorrt", (10, 16), 2),
        ("tensorrt", (11, 0), 0),  # all its networks are
        ("tensorrt-rtx", (1, 7), 2),
    ],
)
def test_networks_are_strongly_typed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, target: str, version: tuple[int, ...], flags: int
) -> None:
    made = Config()
    flavour = Flavour(target, fake(made), version, "cache_update")
    monkeypatch.setattr(trt_compile, "load_flavour", lambda target: flavour)
    compile_engine(job(tmp_path, target=target), lambda phase: None)
    assert made.network_flags == flags


@pytest.mark.parametrize("there", [True, False])
def test_plugins_are_loaded_before_the_graph_is_read(config: Config, tmp_path: Path, there: bool) -> None:
    module, said = trt_compile.load_flavour("tensorrt").module, []
    module.init_libnvinfer_plugins = lambda log, namespace: said.append(namespace) or there
    compile_engine(job(tmp_path), said.append)
    assert "" not in said
    said.clear()
    if there:
        compile_engine(job(tmp_path, plugins=True), said.append)
        assert said[:2] == ["", "parse"]
    else:
        with pytest.raises(
            LiraError, match=r"10\.3 does not load its plugins \(.*\): take --sampling gathers"
        ):
            compile_engine(job(tmp_path, plugins=True), said.append)
        assert said == [""]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="no /dev/full here")
def test_a_full_disk_error_names_the_file(config: Config, tmp_path: Path) -> None:
    with pytest.raises(LiraError, match=r"/dev/full cannot be written: No space left .*; free some room"):
        compile_engine(job(tmp_path, out="/dev/full"), lambda phase: None)


PRINTS = """
    import os
    from lira_engine.trt import compile

    def compile_engine(job, phase):
        os.write(1, b"noise\\n")
        return {"peak_rss_mib": 1, "layers": 2}

    compile.compile_engine = compile_engine
    compile.main()
"""


def test_what_a_library_prints_is_not_read_as_an_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trt_build, "COMPILER", (sys.executable, "-c", textwrap.dedent(PRINTS)))
    found = trt_build.compile_in_process(job(tmp_path), lambda phase: None)
    assert found == {"peak_rss_mib": 1, "layers": 2}


CHILD = """
    import fcntl, time
    from lira_engine.trt import compile

    def compile_engine(job, phase):
        lock = open(job.out, "wb")
        fcntl.flock(lock, fcntl.LOCK_EX)
        phase("build")
        time.sleep(60)

    compile.compile_engine = compile_engine
    compile.main()
"""
PARENT = """
    import sys
    from lira_engine.trt import build
    from lira_engine.trt.compile import Job

    build.COMPILER = (sys.executable, "-c", sys.argv[1])
    job = Job("tensorrt", sys.argv[2], sys.argv[2], [], [])
    build.compile_in_process(job, lambda phase: print(phase, flush=True))
"""


def test_the_compiler_exits_when_its_parent_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "llm.engine"
    command = [sys.executable, "-c", textwrap.dedent(PARENT), textwrap.dedent(CHILD), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert any(line == "build\n" for line in parent.stdout)
        with open(out, "rb") as file:
            with pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            parent.kill()
            deadline = time.monotonic() + 10
            while True:  # the child's lock is free when it is gone
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    assert time.monotonic() < deadline, "the compiler is still there"
                    time.sleep(0.05)


def test_the_error_says_how_the_compiler_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    job = Job("tensorrt-rtx", str(tmp_path / "llm.onnx"), str(tmp_path / "llm.engine"), [], [])
    start = subprocess.Popen
    for script, reason in (
        (
            "import os; os.kill(os.getpid(), 9)",
            r"llm: the compiler was killed by signal 9 \(most likely too little memory\); nothing",
        ),
        ("import os; os.kill(os.getpid(), 11)", "llm: the compiler was killed by signal 11; nothing"),
        (
            "import sys; print('no room', file=sys.stderr); sys.exit(3)",
            "llm: the compiler ended with code 3: no room; nothing was kept",
        ),
        (
            """import sys; print('{"peak_rss_mib": 1, "layers": 1}'); sys.exit(3)""",
            "llm: the compiler ended with code 3; nothing was kept",
        ),
        ("""print('{"error": "it says no"}')""", "llm: it says no; nothing was kept"),
    ):
        monkeypatch.setattr(
            subprocess,
            "Popen",
            lambda command, script=script, **kw: start([sys.executable, "-c", script], **kw),
        )
        with pytest.raises(LiraError, match=reason):
            trt_build.compile_in_process(job, lambda phase: None)
